//! `SessionService` and `AccountService`: the resources over [`Accounts`].

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::account::{Account, Accounts, Role, Session};
use super::control::Controls;
use super::document::{collection, link, patch, resource};
use super::message::Message;
use super::service::{Call, Reply};

const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
const ACCOUNTS: &str = "/redfish/v1/AccountService/Accounts";
const ROLES: &str = "/redfish/v1/AccountService/Roles";

pub fn sessions(accounts: &Accounts, controls: &Controls, call: &Call, rest: &[&str]) -> Reply {
    let behaviour = controls.behaviour();
    match (call.method.as_str(), rest) {
        ("GET", []) => Reply::ok(resource(
            "/redfish/v1/SessionService",
            "#SessionService.v1_1_9.SessionService",
            "Session Service",
            json!({
                "ServiceEnabled": true,
                "SessionTimeout": behaviour.session_timeout.as_secs(),
                "Sessions": link(SESSIONS),
            }),
        )),
        ("PATCH", []) => patch(call, |name, value| match (name, value.as_u64()) {
            ("SessionTimeout", Some(seconds @ 30..=86_400)) => {
                controls.behave(|b| b.session_timeout = std::time::Duration::from_secs(seconds));
                Ok(())
            }
            ("SessionTimeout", _) => Err(Message::value(name, value)),
            _ => Err(Message::unknown(name)),
        }),
        ("GET", ["Sessions"]) => {
            let paths = accounts.sessions(&behaviour).iter().map(Session::path).collect();
            Reply::ok(collection(SESSIONS, "#SessionCollection.SessionCollection", "Session Collection", paths))
        }
        ("POST", ["Sessions"] | ["Sessions", "Members"]) => open(accounts, controls, call),
        ("GET", ["Sessions", id]) => accounts.sessions(&behaviour).iter().find(|s| s.id == *id).map(document).into(),
        ("DELETE", ["Sessions", id]) if accounts.close(id) => Reply::empty(),
        ("DELETE", ["Sessions", _]) => Reply::missing(&call.path),
        _ => Reply::not_allowed(),
    }
}

fn document(session: &Session) -> Value {
    let name = format!("Session {}", session.id);
    resource(&session.path(), "#Session.v1_7_0.Session", &name, json!({ "UserName": session.user, "Password": null }))
}

/// DSP0266 section 13.3.4.2, "Session login".
fn open(accounts: &Accounts, controls: &Controls, call: &Call) -> Reply {
    let behaviour = controls.behaviour();
    let text = |name: &str| call.json.get(name).and_then(Value::as_str).unwrap_or_default();
    let Some(account) = accounts.log_in(text("UserName"), text("Password"), &behaviour) else {
        return Reply::error(StatusCode::UNAUTHORIZED, Message::no_session());
    };
    let Some(session) = accounts.open(&account, &behaviour) else {
        return Reply::error(StatusCode::SERVICE_UNAVAILABLE, Message::session_limit());
    };
    let mut body = document(&session);
    if account.must_change {
        body["@Message.ExtendedInfo"] = json!([Message::change_password(&account.path()).json()]);
    }
    Reply { token: Some(session.token().to_owned()), ..Reply::created(session.path(), body) }
}

pub fn accounts(accounts: &Accounts, controls: &Controls, call: &Call, rest: &[&str]) -> Reply {
    let behaviour = controls.behaviour();
    match (call.method.as_str(), rest) {
        ("GET", []) => Reply::ok(resource(
            "/redfish/v1/AccountService",
            "#AccountService.v1_15_0.AccountService",
            "Account Service",
            json!({
                "ServiceEnabled": true,
                "MinPasswordLength": 8,
                "MaxPasswordLength": 40,
                "AccountLockoutThreshold": behaviour.lockout_after,
                "AccountLockoutDuration": behaviour.lockout.as_secs(),
                "Accounts": link(ACCOUNTS),
                "Roles": link(ROLES),
            }),
        )),
        ("GET", ["Accounts"]) => {
            let paths = accounts.all().iter().map(Account::path).collect();
            let kind = "#ManagerAccountCollection.ManagerAccountCollection";
            Reply::ok(collection(ACCOUNTS, kind, "Accounts Collection", paths))
        }
        ("POST", ["Accounts"]) => create(accounts, call),
        ("GET", ["Accounts", id]) => accounts.account(id).map(|a| account(&a)).into(),
        ("PATCH", ["Accounts", id]) if accounts.account(id).is_some() => change(accounts, call, id),
        ("DELETE", ["Accounts", id]) if accounts.remove(id) => Reply::empty(),
        ("PATCH" | "DELETE", ["Accounts", _]) => Reply::missing(&call.path),
        ("GET", ["Roles"]) => {
            let paths = Role::ALL.iter().map(|r| format!("{ROLES}/{}", r.name())).collect();
            Reply::ok(collection(ROLES, "#RoleCollection.RoleCollection", "Roles Collection", paths))
        }
        ("GET", ["Roles", name]) => Role::from_name(name).map(role).into(),
        _ => Reply::not_allowed(),
    }
}

fn account(account: &Account) -> Value {
    resource(
        &account.path(),
        "#ManagerAccount.v1_12_0.ManagerAccount",
        "User Account",
        json!({
            "UserName": account.name,
            "Password": null,
            "RoleId": account.role.name(),
            "Enabled": account.enabled,
            "Locked": account.is_locked(),
            "PasswordChangeRequired": account.must_change,
            "AccountTypes": ["Redfish"],
            "Links": { "Role": link(&format!("{ROLES}/{}", account.role.name())) },
        }),
    )
}

fn role(role: Role) -> Value {
    let privileges = match role {
        Role::Administrator => {
            json!(["Login", "ConfigureManager", "ConfigureUsers", "ConfigureSelf", "ConfigureComponents"])
        }
        Role::Operator => json!(["Login", "ConfigureSelf", "ConfigureComponents"]),
        Role::ReadOnly => json!(["Login", "ConfigureSelf"]),
    };
    let body = json!({ "RoleId": role.name(), "IsPredefined": true, "AssignedPrivileges": privileges });
    resource(&format!("{ROLES}/{}", role.name()), "#Role.v1_3_1.Role", role.name(), body)
}

fn good_password(password: &str) -> bool {
    (8..=40).contains(&password.len())
}

fn create(accounts: &Accounts, call: &Call) -> Reply {
    let text = |name: &str| call.json.get(name).and_then(Value::as_str);
    for name in ["UserName", "Password", "RoleId"] {
        if text(name).is_none() {
            return Reply::bad(Message::lacks(name));
        }
    }
    let (name, password) = (text("UserName").unwrap_or_default(), text("Password").unwrap_or_default());
    let Some(role) = text("RoleId").and_then(Role::from_name) else {
        return Reply::bad(Message::value("RoleId", &call.json["RoleId"]));
    };
    if !good_password(password) {
        return Reply::bad(Message::value("Password", &json!("***")));
    }
    match accounts.add(Account::new(name, password, role)) {
        Some(made) => Reply::created(made.path(), account(&made)),
        None => Reply::bad(Message::exists("UserName", name)),
    }
}

fn change(accounts: &Accounts, call: &Call, id: &str) -> Reply {
    let reply = patch(call, |name, value| {
        match (name, value) {
            ("Password", Value::String(password)) if good_password(password) => accounts.change(id, |a| {
                a.password = password.clone();
                a.must_change = false;
            }),
            ("Password", _) => return Err(Message::value(name, &json!("***"))),
            ("UserName", Value::String(user)) if !user.is_empty() => accounts.change(id, |a| a.name = user.clone()),
            ("Enabled", Value::Bool(enabled)) => accounts.change(id, |a| a.enabled = *enabled),
            ("Locked", Value::Bool(false)) => accounts.change(id, Account::unlock),
            ("RoleId", Value::String(role)) if Role::from_name(role).is_some() => {
                accounts.change(id, |a| a.role = Role::from_name(role).unwrap_or(a.role))
            }
            ("UserName" | "Enabled" | "Locked" | "RoleId", _) => return Err(Message::value(name, value)),
            _ => return Err(Message::unknown(name)),
        };
        Ok(())
    });
    match (reply.status, accounts.account(id)) {
        (StatusCode::OK, Some(now)) => Reply::ok(account(&now)),
        _ => reply,
    }
}

/// What an account whose password must be changed may still do: change it, see itself, and log out.
pub fn allowed_before_change(call: &Call, account: &Account) -> bool {
    let own = call.path == account.path() && [Method::GET, Method::PATCH].contains(&call.method);
    own || call.path.starts_with(SESSIONS)
}
