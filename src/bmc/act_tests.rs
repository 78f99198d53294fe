//! The policy against BMCs in memory that obey, ignore, or cannot tell.

use super::*;
use crate::bmc::{Info, Sensor};
use crate::machine::Firmware;

/// Follows commands; what it does not do is switched off by a test.
struct Fake {
    power: Power,
    flags: Option<BootSeen>,
    light: Option<bool>,
    /// Ignores control and boot flags, and says yes.
    deaf: bool,
    /// Loses validity, firmware type and duration of boot flags, as ipmi_sim does.
    forgetful: bool,
    /// Refuses control, after somebody else has changed the power state.
    overtaken: bool,
    /// Looks that still show the machine as off after a cycle.
    off_for: u32,
    sent: Vec<String>,
}

const NO_OVERRIDE: BootSeen =
    BootSeen { device: Some(BootDevice::None), firmware: Firmware::Bios, persistent: false, valid: false };
const PXE_ONCE: BootOverride =
    BootOverride { device: BootDevice::Network, firmware: Firmware::Uefi, persistent: false };

impl Fake {
    fn new(power: Power) -> Self {
        Self {
            power,
            flags: Some(NO_OVERRIDE),
            light: Some(false),
            deaf: false,
            forgetful: false,
            overtaken: false,
            off_for: 0,
            sent: Vec::new(),
        }
    }

    async fn run(&mut self, command: Command) -> Result<Answer> {
        let brief = Duration::from_millis(5);
        perform(self, &command, &Limits { confirm: brief, cycle: brief, look: Duration::from_millis(1) }).await
    }

    async fn power(&mut self, action: PowerAction) -> (Power, bool, Outcome) {
        match self.run(Command::Power { action }).await.unwrap() {
            Answer::Power { after, acted, outcome, .. } => (after, acted, outcome),
            other => panic!("{other:?}"),
        }
    }

    async fn set_boot(&mut self, wanted: BootOverride) -> Result<(bool, Outcome)> {
        match self.run(Command::SetBoot(wanted)).await? {
            Answer::SetBoot { acted, outcome, .. } => Ok((acted, outcome)),
            other => panic!("{other:?}"),
        }
    }
}

impl Bmc for Fake {
    fn whose(&self) -> &str {
        "BMC fake"
    }

    async fn chassis(&mut self) -> Result<ChassisState> {
        let mut power = self.power;
        if self.off_for > 0 {
            self.off_for -= 1;
            power = Power::Off;
        }
        Ok(ChassisState { power, fault: None, identify: self.light })
    }

    async fn control(&mut self, action: PowerAction) -> Result<()> {
        self.sent.push(format!("{action:?}"));
        if self.overtaken {
            self.power = if action == PowerAction::On { Power::On } else { Power::Off };
            return Err(Error::refused("bmc.refused", "not possible in the present state"));
        }
        match action {
            _ if self.deaf => {}
            PowerAction::On => self.power = Power::On,
            PowerAction::Off => self.power = Power::Off,
            PowerAction::Cycle => self.off_for = 2,
            PowerAction::Reset | PowerAction::Soft => {}
        }
        Ok(())
    }

    async fn identify(&mut self, seconds: u8) -> Result<()> {
        self.light = self.light.map(|_| seconds > 0 && !self.deaf);
        Ok(())
    }

    async fn boot(&mut self) -> Result<Option<BootSeen>> {
        Ok(self.flags)
    }

    async fn set_boot(&mut self, wanted: BootOverride) -> Result<()> {
        self.sent.push(format!("{:?}", wanted.device));
        if let Some(flags) = &mut self.flags
            && !self.deaf
        {
            let BootOverride { device, firmware, persistent } = wanted;
            *flags = BootSeen { device: Some(device), firmware, persistent, valid: true };
            if self.forgetful {
                *flags = BootSeen { device: Some(device), ..NO_OVERRIDE };
            }
        }
        Ok(())
    }

    async fn sensors(&mut self) -> Result<Vec<Sensor>> {
        Ok(Vec::new())
    }

    async fn info(&mut self) -> Result<Info> {
        Err(Error::refused("bmc.refused", "no"))
    }
}

fn is_unconfirmed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Unconfirmed { .. })
}

#[tokio::test]
async fn what_is_so_already_is_not_asked_for() {
    assert_eq!(Fake::new(Power::On).power(PowerAction::On).await, (Power::On, false, Outcome::Confirmed));
    for action in [PowerAction::Off, PowerAction::Soft] {
        let mut fake = Fake::new(Power::Off);
        assert_eq!(fake.power(action).await, (Power::Off, false, Outcome::Confirmed));
        assert!(fake.sent.is_empty());
    }
}

#[tokio::test]
async fn on_off_and_the_cycle_of_a_machine_that_is_off() {
    assert_eq!(Fake::new(Power::On).power(PowerAction::Off).await, (Power::Off, true, Outcome::Confirmed));
    for action in [PowerAction::On, PowerAction::Cycle, PowerAction::Reset] {
        let mut fake = Fake::new(Power::Off);
        assert_eq!(fake.power(action).await, (Power::On, true, Outcome::Confirmed));
        assert_eq!(fake.sent, ["On"]);
    }
}

#[tokio::test]
async fn a_cycle_is_confirmed_only_when_the_gap_was_seen() {
    let mut fake = Fake::new(Power::On);
    assert_eq!(fake.power(PowerAction::Cycle).await, (Power::On, true, Outcome::Confirmed));
    let mut deaf = Fake { deaf: true, ..Fake::new(Power::On) };
    for action in [PowerAction::Cycle, PowerAction::Reset, PowerAction::Soft] {
        assert!(is_unconfirmed(&deaf.power(action).await.2));
    }
    assert_eq!(deaf.sent, ["Cycle", "Reset", "Soft"]);
}

#[tokio::test]
async fn a_bmc_that_says_yes_and_does_nothing_is_found_out() {
    for (power, action) in [(Power::Off, PowerAction::On), (Power::On, PowerAction::Off)] {
        let mut deaf = Fake { deaf: true, ..Fake::new(power) };
        assert_eq!(deaf.run(Command::Power { action }).await.unwrap_err().code(), "bmc.not-applied");
    }
    let mut deaf = Fake { deaf: true, ..Fake::new(Power::On) };
    assert_eq!(deaf.set_boot(PXE_ONCE).await.unwrap_err().code(), "bmc.not-applied");
}

#[tokio::test]
async fn a_refusal_because_it_is_so_by_now_is_success() {
    let mut fake = Fake { overtaken: true, ..Fake::new(Power::Off) };
    assert_eq!(fake.power(PowerAction::On).await, (Power::On, true, Outcome::Confirmed));
    let mut fake = Fake { overtaken: true, ..Fake::new(Power::On) };
    let error = fake.run(Command::Power { action: PowerAction::Reset }).await.unwrap_err();
    assert_eq!(error.code(), "bmc.refused");
}

#[tokio::test]
async fn a_boot_device_is_set_once_and_read_back() {
    let mut fake = Fake::new(Power::Off);
    assert_eq!(fake.set_boot(PXE_ONCE).await.unwrap(), (true, Outcome::Confirmed));
    assert_eq!(fake.set_boot(PXE_ONCE).await.unwrap(), (false, Outcome::Confirmed));
    let bios = BootOverride { firmware: Firmware::Bios, ..PXE_ONCE };
    assert_eq!(fake.set_boot(bios).await.unwrap(), (true, Outcome::Confirmed));
    let none = BootOverride { device: BootDevice::None, ..PXE_ONCE };
    assert_eq!(fake.set_boot(none).await.unwrap(), (true, Outcome::Confirmed));
    assert_eq!(fake.set_boot(none).await.unwrap(), (false, Outcome::Confirmed));
}

#[tokio::test]
async fn what_the_bmc_cannot_show_is_not_called_confirmed() {
    let mut forgetful = Fake { forgetful: true, ..Fake::new(Power::Off) };
    let (acted, outcome) = forgetful.set_boot(PXE_ONCE).await.unwrap();
    assert!(acted && is_unconfirmed(&outcome));
    // The next time too: without the valid flag it may have been used up.
    assert!(forgetful.set_boot(PXE_ONCE).await.unwrap().0);
    let mut mute = Fake { flags: None, light: None, ..Fake::new(Power::Off) };
    assert!(is_unconfirmed(&mute.set_boot(PXE_ONCE).await.unwrap().1));
    let answer = mute.run(Command::Identify { seconds: 5 }).await.unwrap();
    assert!(matches!(answer, Answer::Identify { outcome: Outcome::Unconfirmed { .. }, .. }));
    let answer = Fake::new(Power::Off).run(Command::Identify { seconds: 5 }).await.unwrap();
    assert!(matches!(answer, Answer::Identify { outcome: Outcome::Confirmed, .. }));
}

#[test]
fn answers_are_flat_objects_and_come_back() {
    let outcome = Outcome::Unconfirmed { why: "w".into() };
    let answer = Answer::Power {
        action: PowerAction::Reset,
        before: Power::On,
        after: Power::On,
        acted: true,
        outcome,
        millis: 7,
    };
    let text = serde_json::to_string(&answer).unwrap();
    assert_eq!(
        text,
        r#"{"answer":"power","action":"reset","before":"on","after":"on","acted":true,"outcome":"unconfirmed","why":"w","millis":7}"#
    );
    assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
    for command in [Command::PowerStatus, Command::SetBoot(PXE_ONCE), Command::Identify { seconds: 1 }] {
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
    }
}
