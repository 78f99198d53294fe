//! What a BMC can be asked to do with the power.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerAction {
    On,
    /// At once, without asking the operating system.
    Off,
    /// Off and on again; on, where it is off.
    Cycle,
    /// Starts the firmware again without loss of power; on, where it is off.
    Reset,
    /// Asks the operating system to shut down.
    Soft,
}

impl std::fmt::Display for PowerAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PowerAction::On => "on",
            PowerAction::Off => "off",
            PowerAction::Cycle => "cycle",
            PowerAction::Reset => "reset",
            PowerAction::Soft => "soft",
        })
    }
}

impl std::str::FromStr for PowerAction {
    type Err = crate::error::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::On, Self::Off, Self::Cycle, Self::Reset, Self::Soft].into_iter().find(|a| a.to_string() == s).ok_or_else(
            || {
                crate::error::Error::input("power.unknown", format!("there is no power action {s:?}"))
                    .hint("use on, off, cycle, reset or soft")
            },
        )
    }
}
