//! BMCs: what a machine's own says and is told, what those of each kind were found to do, and those that asked for an address.
//!
//! | `/api/v1/machines/NAME/bmc/…` | GET | POST |
//! |---|---|---|
//! | `info`, `power`, `boot`, `sensors`, `fru`, `users` | what the BMC says | |
//! | `log` | all entries, or those `?after=ID` | `{"clear": true}`: kept in the timeline, then cleared |
//! | `clock` | how far it is off | sets it |
//! | `network` | address, mask, gateway, VLAN | what is to be changed, as `SetNetwork` |
//! | `identify` | | `{"seconds": 60}`, 0 for off |
//! | `reset` | | `{"cold": false}`: restarts the BMC, not the machine |
//!
//! The power of a machine is changed by an event (`machines::power`), since its lifecycle has to know.

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Failure, Shared};
use crate::bmc::{Answer, Command, SetNetwork};
use crate::engine::About;
use crate::engine::found::FoundBmc;
use crate::engine::learn::Known;
use crate::error::{Error, Kind, OrFail, Result};
use crate::lifecycle::{Event, Machine};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    after: Option<String>,
}

pub async fn look(
    State(s): State<Shared>,
    Path((name, what)): Path<(String, String)>,
    Query(query): Query<After>,
) -> Result<Json<Answer>, Failure> {
    let command = match what.as_str() {
        "info" => Command::Info,
        "power" => Command::PowerStatus,
        "boot" => Command::Boot,
        "sensors" => Command::Sensors,
        "log" => Command::Log { after: query.after },
        "clock" => Command::Clock,
        "fru" => Command::Parts,
        "users" => Command::Users,
        "network" => Command::Network,
        _ => return Err(unknown(&what).into()),
    };
    let machine = s.engine.find(&name)?;
    Ok(Json(s.engine.ask_bmc(&machine, command).await?))
}

pub async fn act(
    State(s): State<Shared>,
    Path((name, what)): Path<(String, String)>,
    request: String,
) -> Result<Json<Answer>, Failure> {
    let machine = s.engine.find(&name)?;
    let command = match what.as_str() {
        "identify" => {
            let Identify { seconds } = body(&request)?;
            Command::Identify { seconds }
        }
        "clock" => {
            let Nothing {} = body(&request)?;
            Command::SetClock
        }
        "network" => Command::SetNetwork(body::<SetNetwork>(&request)?),
        "reset" => {
            let Reset { cold } = body(&request)?;
            Command::ResetBmc { cold }
        }
        "log" => {
            let Clear { clear: Yes } = body(&request)?;
            return Ok(Json(save_and_clear(&s, &machine).await?));
        }
        _ => return Err(unknown(&what).into()),
    };
    Ok(Json(s.engine.ask_bmc(&machine, command).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identify {
    seconds: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    cold: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clear {
    clear: Yes,
}

/// Nothing but `true`.
#[derive(Deserialize)]
#[serde(try_from = "bool")]
struct Yes;

impl TryFrom<bool> for Yes {
    type Error = &'static str;

    fn try_from(yes: bool) -> std::result::Result<Self, &'static str> {
        if yes { Ok(Self) } else { Err("clear is true, or the log stays as it is") }
    }
}

fn body<T: DeserializeOwned>(request: &str) -> Result<T> {
    let words = if request.trim().is_empty() { "{}" } else { request };
    serde_json::from_str(words).map_err(|e| {
        Error::input("request.body", format!("the body of the request is not what this asks for: {e}"))
            .hint("see `rackline bmc --help` for what there is")
    })
}

fn unknown(what: &str) -> Error {
    Error::not_found("bmc.question", format!("a BMC is not asked for {what:?} here"))
        .hint("there are info, power, boot, sensors, log, clock, fru, users, network, identify and reset")
}

/// The entries are on disk before the BMC is told to forget them, and it forgets nothing that came since.
async fn save_and_clear(s: &Shared, machine: &Machine) -> Result<Answer> {
    let Answer::Log(log) = s.engine.ask_bmc(machine, Command::Log { after: None }).await? else {
        return Err(Error::internal("bmc.answer", "a log was asked for and something else came"));
    };
    let Some(last) = log.entries.last().map(|entry| entry.id.clone()) else { return Ok(Answer::Log(log)) };
    let entries = log.entries.iter().map(serde_json::to_value).collect::<std::result::Result<Vec<_>, _>>();
    let entries = entries.or_fail(Kind::Internal, "bmc.answer", || "a log entry cannot be stored")?;
    s.engine.submit(About::Machine(machine.id), Event::BmcLogSaved { entries }).await?;
    s.engine.ask_bmc(machine, Command::ClearLog { last }).await?;
    Ok(Answer::Log(log))
}

pub async fn personalities(State(s): State<Shared>) -> Json<Vec<Known>> {
    Json(s.engine.personalities())
}

pub async fn found(State(s): State<Shared>) -> Json<Vec<FoundBmc>> {
    Json(s.engine.found_bmcs())
}
