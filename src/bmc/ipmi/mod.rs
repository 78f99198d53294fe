//! The IPMI side of [`Bmc`]: commands of `crate::ipmi` in a session of [`super::rmcp`].

mod log;
mod network;
mod parts;
mod records;
mod users;

pub use records::Records;

use super::rmcp::{Repeat, Session};
use super::{
    Bmc, BootDevice, BootOverride, BootSeen, ChassisState, Clock, Fault, Info, Log, Network, Part, Power, PowerAction,
    Sensor, SetNetwork, User,
};
use crate::error::Result;
use crate::ipmi::app::{GetChannelInfo, GetDeviceId, GetSystemGuid, PRESENT_CHANNEL, Reset};
use crate::ipmi::chassis::{self, BootFlags, Control, GetBootFlags, GetStatus, Identify, SetBootOption};
use crate::ipmi::lan::{Address, GetLan, Mac, Source};
use crate::ipmi::{Ask, Completion};
use crate::machine::{Firmware, Secret};

pub struct Ipmi<'a> {
    pub session: &'a mut Session,
    pub records: &'a mut Option<Records>,
}

impl Ipmi<'_> {
    async fn ask<A: Ask>(&mut self, ask: &A) -> Result<A::Answer> {
        let answer = self.session.ask(ask).await?;
        answer.map_err(|fault| fault.into_error(self.session.whose()))
    }

    /// The number of the channel that we came in on; some BMCs take [`PRESENT_CHANNEL`] for reading only.
    async fn channel(&mut self) -> Result<u8> {
        let channel = self.session.ask(&GetChannelInfo(PRESENT_CHANNEL)).await?;
        Ok(channel.map_or(PRESENT_CHANNEL, |channel| channel.number))
    }
}

impl Bmc for Ipmi<'_> {
    fn whose(&self) -> &str {
        self.session.whose()
    }

    async fn chassis(&mut self) -> Result<ChassisState> {
        let status = self.ask(&GetStatus).await?;
        let faults = [
            (status.power_fault, Fault::Power),
            (status.control_fault, Fault::Control),
            (status.overload, Fault::Overload),
            (status.interlock, Fault::Interlock),
        ];
        Ok(ChassisState {
            power: if status.on { Power::On } else { Power::Off },
            fault: faults.iter().find(|(there, _)| *there).map(|(_, fault)| *fault),
            identify: status.identify,
        })
    }

    async fn control(&mut self, action: PowerAction) -> Result<()> {
        let (action, repeat) = match action {
            PowerAction::On => (chassis::Action::Up, Repeat::Soon),
            PowerAction::Off => (chassis::Action::Down, Repeat::Soon),
            PowerAction::Cycle => (chassis::Action::Cycle, Repeat::Late),
            PowerAction::Reset => (chassis::Action::HardReset, Repeat::Late),
            PowerAction::Soft => (chassis::Action::Soft, Repeat::Late),
        };
        let ask = Control(action);
        let response = self.session.exchange(&ask.request(), repeat).await?;
        ask.settle(&response).map_err(|fault| fault.into_error(self.session.whose()))
    }

    async fn identify(&mut self, seconds: u8) -> Result<()> {
        self.ask(&Identify(seconds)).await
    }

    async fn boot(&mut self) -> Result<Option<BootSeen>> {
        match self.session.ask(&GetBootFlags).await? {
            Ok(flags) => Ok(Some(seen(flags))),
            Err(fault) if fault.completion() == Some(Completion::INSUFFICIENT_PRIVILEGE) => {
                Err(fault.into_error(self.session.whose()))
            }
            // It may be able to set what it cannot get.
            Err(fault) => {
                tracing::debug!(bmc = self.session.whose(), ?fault, "boot flags not told");
                Ok(None)
            }
        }
    }

    async fn set_boot(&mut self, wanted: BootOverride) -> Result<()> {
        // Both prepare the ground where the BMC knows them; without them the flags alone have to do.
        for option in [SetBootOption::ClearAcknowledge, SetBootOption::KeepFlags] {
            if let Err(fault) = self.session.ask(&option).await? {
                tracing::debug!(bmc = self.session.whose(), ?fault, "boot option not taken");
            }
        }
        let flags = BootFlags {
            valid: true,
            persistent: wanted.persistent,
            uefi: wanted.firmware == Firmware::Uefi,
            device: match wanted.device {
                BootDevice::None => chassis::Device::None,
                BootDevice::Network => chassis::Device::Pxe,
                BootDevice::Disk => chassis::Device::Disk,
            },
        };
        self.ask(&SetBootOption::Flags(flags)).await
    }

    async fn sensors(&mut self) -> Result<Vec<Sensor>> {
        self.read_sensors().await
    }

    async fn info(&mut self) -> Result<Info> {
        let id = self.ask(&GetDeviceId).await?;
        let suite = self.session.suite().number();
        let lan = PRESENT_CHANNEL;
        Ok(Info {
            protocol: format!("IPMI {}, cipher suite {suite}", id.ipmi),
            firmware: id.firmware,
            manufacturer: manufacturer(id.manufacturer),
            product: id.product,
            guid: self.session.ask(&GetSystemGuid).await?.ok().map(uuid::Uuid::from_bytes),
            address: self
                .session
                .ask(&GetLan { channel: lan, parameter: Address })
                .await?
                .ok()
                .flatten()
                .map(Into::into),
            mac: self.session.ask(&GetLan { channel: lan, parameter: Mac }).await?.ok(),
            address_source: self
                .session
                .ask(&GetLan { channel: lan, parameter: Source })
                .await?
                .ok()
                .map(|origin| origin.name().to_owned()),
        })
    }

    async fn log(&mut self, after: Option<&str>) -> Result<Log> {
        self.read_log(after).await
    }

    async fn clear_log(&mut self, last: &str) -> Result<()> {
        self.erase_log(last).await
    }

    async fn clock(&mut self) -> Result<Option<Clock>> {
        self.read_clock().await
    }

    async fn set_clock(&mut self) -> Result<()> {
        self.write_clock().await
    }

    async fn parts(&mut self) -> Result<Vec<Part>> {
        self.read_parts().await
    }

    async fn users(&mut self) -> Result<Vec<User>> {
        self.read_users().await
    }

    async fn set_password(&mut self, user: &str, password: &Secret) -> Result<()> {
        self.write_password(user, password).await
    }

    async fn network(&mut self) -> Result<Network> {
        self.read_network().await
    }

    async fn set_network(&mut self, wanted: &SetNetwork) -> Result<()> {
        self.write_network(wanted).await
    }

    async fn reset_bmc(&mut self, cold: bool) -> Result<()> {
        let ask = Reset { cold };
        match self.session.exchange(&ask.request(), Repeat::Late).await {
            Ok(response) => ask.settle(&response).map_err(|fault| fault.into_error(self.session.whose())),
            // It went down before it answered, and that is what was wanted.
            Err(e) if e.code() == "bmc.unreachable" && self.session.heard() => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn seen(flags: BootFlags) -> BootSeen {
    BootSeen {
        device: match flags.device {
            chassis::Device::None => Some(BootDevice::None),
            chassis::Device::Pxe => Some(BootDevice::Network),
            chassis::Device::Disk => Some(BootDevice::Disk),
            chassis::Device::Other(_) => None,
        },
        firmware: if flags.uefi { Firmware::Uefi } else { Firmware::Bios },
        persistent: flags.persistent,
        valid: flags.valid,
    }
}

/// Makers of servers and of BMCs among the IANA enterprise numbers.
fn manufacturer(number: u32) -> String {
    let name = match number {
        2 => "IBM",
        11 => "HP",
        343 => "Intel",
        674 => "Dell",
        2011 => "Huawei",
        7244 => "Quanta",
        10876 => "Supermicro",
        19046 => "Lenovo",
        47196 => "HPE",
        _ => return format!("IANA {number}"),
    };
    name.to_owned()
}
