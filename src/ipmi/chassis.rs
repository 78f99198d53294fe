//! Chassis commands: power state and control, identify, boot options (section 28).

use serde::{Deserialize, Serialize};

use super::message::{Ask, Fields, Request, netfn};

/// Get Chassis Capabilities (28.1).
pub struct GetCapabilities;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub intrusion_sensor: bool,
    pub panel_lockout: bool,
    pub diagnostic_interrupt: bool,
    pub power_interlock: bool,
}

impl Ask for GetCapabilities {
    const NAME: &'static str = "Get Chassis Capabilities";
    type Answer = Capabilities;

    fn request(&self) -> Request {
        Request::new(netfn::CHASSIS, 0x00, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Capabilities> {
        let flags = data.u8()?;
        let bit = |n: u8| flags >> n & 1 == 1;
        Some(Capabilities {
            intrusion_sensor: bit(0),
            panel_lockout: bit(1),
            diagnostic_interrupt: bit(2),
            power_interlock: bit(3),
        })
    }
}

/// Get Chassis Status (28.2).
pub struct GetStatus;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub on: bool,
    pub overload: bool,
    pub interlock: bool,
    pub power_fault: bool,
    pub control_fault: bool,
    /// State of the identify light; `None` where the BMC does not tell.
    pub identify: Option<bool>,
}

impl Ask for GetStatus {
    const NAME: &'static str = "Get Chassis Status";
    type Answer = Status;

    fn request(&self) -> Request {
        Request::new(netfn::CHASSIS, 0x01, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Status> {
        let (power, _last_event, misc) = (data.u8()?, data.u8()?, data.u8()?);
        let bit = |n: u8| power >> n & 1 == 1;
        Some(Status {
            on: bit(0),
            overload: bit(1),
            interlock: bit(2),
            power_fault: bit(3),
            control_fault: bit(4),
            identify: (misc & 0x40 != 0).then_some(misc & 0x30 != 0),
        })
    }
}

/// Chassis Control (28.3).
pub struct Control(pub Action);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    Down = 0,
    Up = 1,
    Cycle = 2,
    HardReset = 3,
    /// Soft shutdown by ACPI.
    Soft = 5,
}

impl Ask for Control {
    const NAME: &'static str = "Chassis Control";
    type Answer = ();

    fn request(&self) -> Request {
        Request::new(netfn::CHASSIS, 0x02, [self.0 as u8])
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// Chassis Identify (28.5): the light is on for so many seconds; 0 turns it off.
pub struct Identify(pub u8);

impl Ask for Identify {
    const NAME: &'static str = "Chassis Identify";
    type Answer = ();

    fn request(&self) -> Request {
        Request::new(netfn::CHASSIS, 0x04, [self.0])
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// Boot flags, parameter 5 of the boot options (table 28-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFlags {
    /// BIOS follows the flags only while this is set; the BMC clears it when they have been used.
    pub valid: bool,
    pub persistent: bool,
    pub uefi: bool,
    pub device: Device,
}

/// Boot device selector, 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// No override.
    None,
    Pxe,
    Disk,
    /// One that the project does not set, by its number.
    Other(u8),
}

impl Device {
    fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Pxe => 1,
            Self::Disk => 2,
            Self::Other(code) => code & 0xf,
        }
    }
}

impl BootFlags {
    fn encode(self) -> [u8; 5] {
        let flags = u8::from(self.valid) << 7 | u8::from(self.persistent) << 6 | u8::from(self.uefi) << 5;
        [flags, self.device.code() << 2, 0, 0, 0]
    }

    fn decode(data: &mut Fields<'_>) -> Option<Self> {
        let (flags, device) = (data.u8()?, data.u8()?);
        let device = match device >> 2 & 0xf {
            0 => Device::None,
            1 => Device::Pxe,
            2 => Device::Disk,
            other => Device::Other(other),
        };
        Some(Self { valid: flags & 0x80 != 0, persistent: flags & 0x40 != 0, uefi: flags & 0x20 != 0, device })
    }
}

/// Set System Boot Options (28.12), for the parameters that a boot override needs.
pub enum SetBootOption {
    /// 3: with this the BMC keeps the flags valid when no power command follows within 60 seconds. Without it a boot
    /// device that is set ahead of time is lost on the quiet.
    KeepFlags,
    /// 4: takes back an earlier "BIOS has handled the boot info", which makes some BIOSes ignore new flags.
    ClearAcknowledge,
    /// 5.
    Flags(BootFlags),
}

impl Ask for SetBootOption {
    const NAME: &'static str = "Set System Boot Options";
    type Answer = ();

    fn request(&self) -> Request {
        let mut data = Vec::with_capacity(6);
        match self {
            Self::KeepFlags => data.extend([3, 0x08]),
            Self::ClearAcknowledge => data.extend([4, 0x01, 0x01]),
            Self::Flags(flags) => {
                data.push(5);
                data.extend(flags.encode());
            }
        }
        Request::new(netfn::CHASSIS, 0x08, data)
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        boot_refusal(code)
    }
}

/// Get System Boot Options (28.13), parameter 5.
pub struct GetBootFlags;

impl Ask for GetBootFlags {
    const NAME: &'static str = "Get System Boot Options";
    type Answer = BootFlags;

    fn request(&self) -> Request {
        Request::new(netfn::CHASSIS, 0x09, [5, 0, 0])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<BootFlags> {
        let (_version, parameter) = (data.u8()?, data.u8()?);
        let mut flags = BootFlags::decode(data)?;
        // The top bit marks the parameter itself as invalid or locked.
        flags.valid &= parameter & 0x80 == 0;
        (parameter & 0x7f == 5).then_some(flags)
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        boot_refusal(code)
    }
}

fn boot_refusal(code: u8) -> Option<&'static str> {
    Some(match code {
        0x80 => "the BMC does not have this boot option",
        0x81 => "somebody else is setting boot options",
        0x82 => "the boot option cannot be written",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{parse, survives_truncation};
    use super::*;

    #[test]
    fn status_bits() {
        // On, restore policy "previous", last event "by command", identify supported and on for a while, front panel.
        let data = [0x21, 0x10, 0x50, 0x00];
        let status = parse(&GetStatus, &data).unwrap();
        assert!(status.on && !status.power_fault && status.identify == Some(true));
        let status = parse(&GetStatus, &[0x08, 0x00, 0x00]).unwrap();
        assert!(!status.on && status.power_fault && status.identify.is_none());
        survives_truncation(&GetStatus, &data);
        assert!(parse(&GetStatus, &data[..2]).is_none());
    }

    #[test]
    fn control_and_identify_bytes() {
        assert_eq!(Control(Action::Cycle).request().data, [2]);
        assert_eq!(Control(Action::Soft).request().data, [5]);
        assert_eq!(Identify(15).request(), Request::new(0, 4, [15]));
    }

    #[test]
    fn boot_flags_as_ipmitool_sends_them() {
        // `chassis bootdev pxe options=efiboot` and `… disk options=persistent`.
        let pxe = BootFlags { valid: true, persistent: false, uefi: true, device: Device::Pxe };
        assert_eq!(SetBootOption::Flags(pxe).request().data, [5, 0xa0, 0x04, 0, 0, 0]);
        let disk = BootFlags { valid: true, persistent: true, uefi: false, device: Device::Disk };
        assert_eq!(SetBootOption::Flags(disk).request().data, [5, 0xc0, 0x08, 0, 0, 0]);
        assert_eq!(parse(&GetBootFlags, &[1, 5, 0xa0, 0x04, 0, 0, 0]), Some(pxe));
        assert_eq!(parse(&GetBootFlags, &[1, 5, 0xc0, 0x08, 0, 0, 0]), Some(disk));
    }

    #[test]
    fn a_locked_parameter_and_a_cleared_bit_are_not_valid() {
        assert!(!parse(&GetBootFlags, &[1, 0x85, 0x80, 0x04, 0, 0, 0]).unwrap().valid);
        // What ipmi_sim 2.0.33 answers after a set.
        let flags = parse(&GetBootFlags, &[1, 5, 0, 4, 0, 0, 0]).unwrap();
        assert_eq!((flags.valid, flags.device), (false, Device::Pxe));
        assert_eq!(parse(&GetBootFlags, &[1, 5, 0x80, 0x18, 0, 0, 0]).unwrap().device, Device::Other(6));
        assert!(parse(&GetBootFlags, &[1, 4, 0, 0, 0, 0, 0]).is_none());
        survives_truncation(&GetBootFlags, &[1, 5, 0, 4, 0, 0, 0]);
    }
}
