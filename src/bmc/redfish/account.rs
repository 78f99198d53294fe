//! Users of the BMC (AccountService).

use serde_json::json;

use super::doc::{Doc, Properties};
use super::http::Call;
use super::resource::refusal;
use super::session::Session;
use crate::bmc::User;
use crate::error::{Error, Result};
use crate::machine::Secret;

impl Session {
    pub(super) async fn accounts(&mut self) -> Result<Vec<User>> {
        Ok(self.account_docs().await?.iter().filter_map(user).collect())
    }

    pub(super) async fn change_password(&mut self, user: &str, password: &Secret) -> Result<()> {
        let account = match self.account_docs().await {
            Ok(accounts) => {
                accounts.into_iter().find(|doc| doc.text("UserName").as_deref() == Some(user)).map(|doc| doc.path)
            }
            // Fresh from the factory, some BMCs show nothing but the account whose password has to be changed.
            Err(e) if e.code() == "bmc.password-change" => self.account_to_change().await?,
            Err(e) => return Err(e),
        };
        let Some(account) = account else {
            let message = format!("{} has no user {user}", self.whose());
            return Err(Error::input("bmc.user", message).hint("list the users that it has"));
        };
        let reply = self.patch(&account, |_| Some(json!({ "Password": password.expose() }))).await?;
        self.settle(reply).await
    }

    async fn account_docs(&mut self) -> Result<Vec<Doc>> {
        let Some(service) = self.root().link("AccountService").map(str::to_owned) else {
            return Err(self.lacks("its users"));
        };
        let service = self.get(&service).await?;
        match service.link("Accounts").map(str::to_owned) {
            Some(accounts) => self.members(&accounts).await,
            None => Err(self.lacks("its users")),
        }
    }

    /// The refusal names the account (DSP0266, “Password management”: `PasswordChangeRequired` has its URI).
    async fn account_to_change(&mut self) -> Result<Option<String>> {
        let Some(service) = self.root().link("AccountService") else { return Ok(None) };
        let call = Call::get(service);
        let reply = self.exchange(&call).await?;
        match reply.argument("PasswordChangeRequired") {
            Some(account) if account.starts_with('/') => Ok(Some(account)),
            _ => Err(refusal(self.whose(), &call, &reply)),
        }
    }
}

/// iDRAC has 16 places for users, of which most are empty.
fn user(doc: &Doc) -> Option<User> {
    Some(User {
        id: doc.text("Id").unwrap_or_else(|| doc.path.clone()),
        name: doc.text("UserName")?,
        enabled: doc.flag("Enabled"),
        role: doc.text("RoleId").unwrap_or_default(),
    })
}
