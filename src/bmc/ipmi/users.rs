//! Users of the BMC and their passwords.

use super::Ipmi;
use crate::bmc::User;
use crate::error::{Error, Result};
use crate::ipmi::app::Privilege;
use crate::ipmi::text::{latin, printable};
use crate::ipmi::user::{GetUserAccess, GetUserName, PASSWORD_MAX, Password, SetUserPassword};
use crate::ipmi::{Completion, Fault};
use crate::machine::Secret;

impl Ipmi<'_> {
    pub(super) async fn read_users(&mut self) -> Result<Vec<User>> {
        let channel = self.channel().await?;
        let slots = self.ask(&GetUserAccess { channel, user: 1 }).await?.slots;
        let mut users = Vec::new();
        for slot in 1..=slots {
            let Some(name) = self.user_name(slot).await? else { continue };
            let Ok(access) = self.session.ask(&GetUserAccess { channel, user: slot }).await? else { continue };
            // Slot 1 is the user without a name; it matters only where it can log in.
            if name.is_empty() && (slot != 1 || !access.may_message || access.enabled == Some(false)) {
                continue;
            }
            users.push(User {
                id: slot.to_string(),
                name,
                enabled: access.enabled,
                role: if access.may_message { role(access.privilege) } else { "NoAccess" }.to_owned(),
            });
        }
        Ok(users)
    }

    /// `None` for a slot that was never named: some BMCs refuse those.
    async fn user_name(&mut self, slot: u8) -> Result<Option<String>> {
        match self.session.ask(&GetUserName(slot)).await? {
            Ok(name) => Ok(Some(printable(&latin(&name)))),
            Err(fault) if fault.completion() == Some(Completion(0xcc)) => Ok(None),
            Err(fault) => Err(fault.into_error(self.session.whose())),
        }
    }

    /// Of an enabled user that there is. Written and tested as it is: whether it is long enough for a BMC that keeps 16 of 20
    /// bytes and says nothing, only a log-in shows.
    pub(super) async fn write_password(&mut self, user: &str, password: &Secret) -> Result<()> {
        let length = password.expose().len();
        if length == 0 || length > PASSWORD_MAX {
            return Err(Error::input("bmc.user", format!("a password of IPMI has 1 to {PASSWORD_MAX} bytes")));
        }
        let channel = self.channel().await?;
        let slots = self.ask(&GetUserAccess { channel, user: 1 }).await?.slots;
        for slot in 2..=slots {
            if self.user_name(slot).await?.as_deref() == Some(user) {
                return self.write_slot(slot, password).await;
            }
        }
        Err(Error::not_found("bmc.user", format!("{} has no user {user:?}", self.session.whose()))
            .hint("`rackline bmc users` shows those that it has"))
    }

    async fn write_slot(&mut self, user: u8, password: &Secret) -> Result<()> {
        self.ask(&SetUserPassword { user, operation: Password::Set(password.expose()) }).await?;
        let test = SetUserPassword { user, operation: Password::Test(password.expose()) };
        // A BMC that does not know the test has its own code for that; only a clear "no" is one.
        match self.session.ask(&test).await? {
            Err(Fault::Refused {
                completion: Completion(SetUserPassword::MISMATCH | SetUserPassword::LENGTH),
                why,
                ..
            }) => {
                let message = format!("{} took a password, but {why}", self.session.whose());
                Err(Error::refused("bmc.not-applied", message).hint("give it one of at most 16 bytes"))
            }
            _ => Ok(()),
        }
    }
}

/// Privilege limits (table 6-2) by the names that Redfish has for the same.
fn role(privilege: u8) -> &'static str {
    const OPERATOR: u8 = Privilege::Operator as u8;
    const ADMINISTRATOR: u8 = Privilege::Administrator as u8;
    match privilege {
        1 => "Callback",
        2 => "ReadOnly",
        OPERATOR => "Operator",
        ADMINISTRATOR => "Administrator",
        5 => "OEM",
        _ => "NoAccess",
    }
}
