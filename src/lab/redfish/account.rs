//! Who may do what: accounts with lock-out and passwords that must be changed, sessions that end by themselves.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use aws_lc_rs::rand;

use super::control::Behaviour;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Administrator,
    Operator,
    ReadOnly,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Administrator, Role::Operator, Role::ReadOnly];

    pub fn name(self) -> &'static str {
        match self {
            Role::Administrator => "Administrator",
            Role::Operator => "Operator",
            Role::ReadOnly => "ReadOnly",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

#[derive(Debug, Clone)]
pub struct Account {
    /// The last part of its path; given by [`Accounts`].
    pub id: String,
    pub name: String,
    pub password: String,
    pub role: Role,
    pub enabled: bool,
    /// As with a password from the factory: nothing but its change is allowed.
    pub must_change: bool,
    failures: u32,
    locked_until: Option<Instant>,
}

impl Account {
    pub fn administrator(name: &str, password: &str) -> Self {
        Self::new(name, password, Role::Administrator)
    }

    pub fn new(name: &str, password: &str, role: Role) -> Self {
        Self {
            id: String::new(),
            name: name.to_owned(),
            password: password.to_owned(),
            role,
            enabled: true,
            must_change: false,
            failures: 0,
            locked_until: None,
        }
    }

    pub fn path(&self) -> String {
        format!("/redfish/v1/AccountService/Accounts/{}", self.id)
    }

    pub fn is_locked(&self) -> bool {
        self.locked_until.is_some_and(|until| Instant::now() < until)
    }

    pub fn unlock(&mut self) {
        self.failures = 0;
        self.locked_until = None;
    }
}

#[derive(Debug, Clone)]
pub struct Session {
    pub id: String,
    pub account: String,
    pub user: String,
    token: String,
    used: Instant,
}

impl Session {
    pub fn path(&self) -> String {
        format!("/redfish/v1/SessionService/Sessions/{}", self.id)
    }

    /// The secret, which only the answer to its making shows.
    pub fn token(&self) -> &str {
        &self.token
    }
}

pub struct Accounts(Mutex<Inner>);

struct Inner {
    accounts: Vec<Account>,
    sessions: Vec<Session>,
    next: u64,
}

impl Accounts {
    pub fn new(accounts: Vec<Account>) -> Self {
        let all = Self(Mutex::new(Inner { accounts: Vec::new(), sessions: Vec::new(), next: 1 }));
        accounts.into_iter().for_each(|account| drop(all.add(account)));
        all
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// `None` where the name is taken.
    pub fn add(&self, account: Account) -> Option<Account> {
        let mut inner = self.inner();
        if inner.accounts.iter().any(|a| a.name == account.name) {
            return None;
        }
        // Slot 1 is often not for people; the first one that is has number 2.
        let taken = inner.accounts.iter().filter_map(|a| a.id.parse::<u32>().ok()).max().unwrap_or(1);
        let account = Account { id: (taken + 1).to_string(), ..account };
        inner.accounts.push(account.clone());
        Some(account)
    }

    pub fn all(&self) -> Vec<Account> {
        self.inner().accounts.clone()
    }

    pub fn account(&self, id: &str) -> Option<Account> {
        self.inner().accounts.iter().find(|a| a.id == id).cloned()
    }

    /// `false` where there is no such account.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Account)) -> bool {
        self.inner().accounts.iter_mut().find(|a| a.id == id).map(change).is_some()
    }

    /// Its sessions go with it.
    pub fn remove(&self, id: &str) -> bool {
        let mut inner = self.inner();
        inner.sessions.retain(|s| s.account != id);
        let before = inner.accounts.len();
        inner.accounts.retain(|a| a.id != id);
        inner.accounts.len() < before
    }

    /// The account, if the password is right and the account is neither locked nor disabled.
    pub fn log_in(&self, name: &str, password: &str, behaviour: &Behaviour) -> Option<Account> {
        let mut inner = self.inner();
        let account = inner.accounts.iter_mut().find(|a| a.name == name)?;
        if account.is_locked() || !account.enabled {
            return None;
        }
        if account.password == password {
            account.unlock();
            return Some(account.clone());
        }
        account.failures += 1;
        if behaviour.lockout_after > 0 && account.failures >= behaviour.lockout_after {
            account.locked_until = Some(Instant::now() + behaviour.lockout);
            account.failures = 0;
        }
        None
    }

    /// `None` where there are too many.
    pub fn open(&self, account: &Account, behaviour: &Behaviour) -> Option<Session> {
        let mut inner = self.inner();
        inner.forget(behaviour);
        if inner.sessions.len() >= behaviour.max_sessions {
            return None;
        }
        let id = inner.next.to_string();
        inner.next += 1;
        let session = Session {
            id,
            account: account.id.clone(),
            user: account.name.clone(),
            token: token(),
            used: Instant::now(),
        };
        inner.sessions.push(session.clone());
        Some(session)
    }

    /// Whose token this is; that its session was used counts.
    pub fn by_token(&self, token: &str, behaviour: &Behaviour) -> Option<Account> {
        let mut inner = self.inner();
        inner.forget(behaviour);
        let session = inner.sessions.iter_mut().find(|s| s.token == token)?;
        session.used = Instant::now();
        let id = session.account.clone();
        inner.accounts.iter().find(|a| a.id == id && a.enabled).cloned()
    }

    pub fn sessions(&self, behaviour: &Behaviour) -> Vec<Session> {
        let mut inner = self.inner();
        inner.forget(behaviour);
        inner.sessions.clone()
    }

    pub fn close(&self, id: &str) -> bool {
        let mut inner = self.inner();
        let before = inner.sessions.len();
        inner.sessions.retain(|s| s.id != id);
        inner.sessions.len() < before
    }

    pub fn close_all(&self) {
        self.inner().sessions.clear();
    }
}

impl Inner {
    fn forget(&mut self, behaviour: &Behaviour) {
        self.sessions.retain(|s| s.used.elapsed() < behaviour.session_timeout);
    }
}

fn token() -> String {
    let mut bytes = [0u8; 16];
    // A failure of the system's random numbers leaves a token that is still one of its own.
    let _ = rand::fill(&mut bytes);
    format!("{:032x}{}", u128::from_be_bytes(bytes), uuid::Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn wrong_passwords_lock_an_account() {
        let accounts = Accounts::new(vec![Account::administrator("root", "calvin")]);
        let behaviour = Behaviour { lockout_after: 2, ..Behaviour::default() };
        assert!(accounts.log_in("root", "calvin", &behaviour).is_some());
        assert!(accounts.log_in("root", "x", &behaviour).is_none());
        assert!(accounts.log_in("root", "x", &behaviour).is_none());
        assert!(accounts.log_in("root", "calvin", &behaviour).is_none(), "locked");
        accounts.change("2", Account::unlock);
        assert!(accounts.log_in("root", "calvin", &behaviour).is_some());
    }

    #[test]
    fn a_session_ends_by_itself_and_there_are_only_so_many() {
        let accounts = Accounts::new(vec![Account::administrator("root", "calvin")]);
        let mut behaviour = Behaviour { max_sessions: 1, ..Behaviour::default() };
        let root = accounts.account("2").unwrap();
        let session = accounts.open(&root, &behaviour).unwrap();
        assert!(accounts.open(&root, &behaviour).is_none());
        assert_eq!(accounts.by_token(session.token(), &behaviour).unwrap().name, "root");
        behaviour.session_timeout = Duration::ZERO;
        assert!(accounts.by_token(session.token(), &behaviour).is_none());
    }
}
