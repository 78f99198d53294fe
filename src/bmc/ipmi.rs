//! The IPMI side of [`Bmc`]: commands of `crate::ipmi` in a session of [`super::rmcp`].

use super::rmcp::{Repeat, Session};
use super::{Bmc, BootDevice, BootOverride, BootSeen, ChassisState, Fault, Info, Power, PowerAction, Sensor};
use crate::error::Result;
use crate::ipmi::app::{DeviceId, GetDeviceId, GetSystemGuid, PRESENT_CHANNEL};
use crate::ipmi::chassis::{self, BootFlags, Control, GetBootFlags, GetStatus, Identify, SetBootOption};
use crate::ipmi::lan::{Address, GetLan, Mac, Source};
use crate::ipmi::sdr::{self, GetRepositoryInfo, RepositoryInfo, Walk, kind_name};
use crate::ipmi::sensor::GetReading;
use crate::ipmi::{Ask, Completion};
use crate::machine::Firmware;

/// Sensors of one BMC that are read; a real server has 50 to 400.
const SENSORS_MAX: usize = 1024;
/// Slave address of the BMC itself. Sensors of other controllers would need bridging.
const BMC_OWNER: u8 = 0x20;

/// Sensor records of a BMC, kept between calls: to read them takes seconds, and they hardly ever change.
pub struct Records {
    info: RepositoryInfo,
    sensors: Vec<sdr::Sensor>,
}

pub struct Ipmi<'a> {
    pub session: &'a mut Session,
    pub records: &'a mut Option<Records>,
}

impl Ipmi<'_> {
    async fn ask<A: Ask>(&mut self, ask: &A) -> Result<A::Answer> {
        let answer = self.session.ask(ask).await?;
        answer.map_err(|fault| fault.into_error(self.session.whose()))
    }

    /// The records, read again only where the BMC says that they changed.
    async fn read_records(&mut self) -> Result<()> {
        let device: DeviceId = self.ask(&GetDeviceId).await?;
        let info = match device.has_sdr_repository {
            true => Some(self.ask(&GetRepositoryInfo).await?),
            false => None,
        };
        if let (Some(records), Some(info)) = (self.records.as_ref(), info)
            && records.info == info
        {
            return Ok(());
        }
        let source = if info.is_some() { sdr::Source::Repository } else { sdr::Source::Device };
        let mut walk = Walk::new(source);
        let mut sensors = Vec::new();
        while let Some(request) = walk.request() {
            let response = self.session.exchange(&request, Repeat::Soon).await?;
            let record = walk.answer(&response).map_err(|fault| fault.into_error(self.session.whose()))?;
            sensors.extend(record.iter().flat_map(|r| sdr::sensors(r)).filter(|s| s.owner == BMC_OWNER));
            if sensors.len() >= SENSORS_MAX {
                tracing::warn!(bmc = self.session.whose(), "more than {SENSORS_MAX} sensors; the rest is not read");
                sensors.truncate(SENSORS_MAX);
                break;
            }
        }
        let info = info.unwrap_or(RepositoryInfo { records: 0, added: 0, erased: 0 });
        *self.records = Some(Records { info, sensors });
        Ok(())
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
        self.read_records().await?;
        let records = self.records.as_ref().map(|r| r.sensors.as_slice()).unwrap_or_default();
        let mut sensors = Vec::with_capacity(records.len());
        for record in records {
            // A refusal here is "not present" or "not allowed for this sensor": there is no reading.
            let reading = self.session.ask(&GetReading { lun: record.lun, number: record.number }).await?.ok();
            let raw = reading.and_then(|r| r.raw);
            let there = reading.filter(|r| r.raw.is_some());
            sensors.push(Sensor {
                name: record.name.clone(),
                kind: kind_name(record.kind).to_owned(),
                value: raw.and_then(|raw| record.scale?.value(raw)),
                unit: record.unit.to_owned(),
                level: there.filter(|_| record.threshold).map(|r| r.level()),
                states: there.filter(|_| !record.threshold).map(|r| r.states),
            });
        }
        Ok(sensors)
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
                .map(str::to_owned),
        })
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
