//! What the BMC sits in: the lab's QEMU, or memory.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::error::Result;
use crate::lab::BootDevice;
use crate::lab::fru::Sensor;

/// `ResetType` of DSP2046 that a machine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    On,
    ForceOff,
    GracefulShutdown,
    ForceRestart,
    PowerCycle,
    PushPowerButton,
}

impl Reset {
    pub const ALL: [Reset; 6] = [
        Reset::On,
        Reset::ForceOff,
        Reset::GracefulShutdown,
        Reset::ForceRestart,
        Reset::PowerCycle,
        Reset::PushPowerButton,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reset::On => "On",
            Reset::ForceOff => "ForceOff",
            Reset::GracefulShutdown => "GracefulShutdown",
            Reset::ForceRestart => "ForceRestart",
            Reset::PowerCycle => "PowerCycle",
            Reset::PushPowerButton => "PushPowerButton",
        }
    }
}

/// Where the firmware looks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// For the next start alone; `None` of [`BootDevice`] where there is no such wish.
    pub once: BootDevice,
    /// For every other start.
    pub always: BootDevice,
}

impl Default for Boot {
    fn default() -> Self {
        Self { once: BootDevice::None, always: BootDevice::None }
    }
}

/// May block for as long as a machine takes to start.
pub trait Hardware: Send + Sync + 'static {
    fn is_on(&self) -> Result<bool>;
    fn reset(&self, how: Reset) -> Result<()>;
    fn boot(&self) -> Result<Boot>;
    fn set_boot(&self, boot: Boot) -> Result<()>;
    /// How often firmware has started from its beginning: that is when settings are taken over.
    fn starts(&self) -> Result<u64>;
    /// The raw reading; what it means stands in the sensor's record.
    fn reading(&self, sensor: &Sensor) -> u8 {
        sensor.nominal
    }
}

/// A machine without a machine.
#[derive(Default)]
pub struct InMemory(Mutex<State>);

#[derive(Default)]
struct State {
    on: bool,
    boot: Boot,
    starts: u64,
    /// The operating system does not listen to the power button.
    hung: bool,
    booted: Vec<BootDevice>,
    readings: HashMap<u8, u8>,
}

impl InMemory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn hang(&self, hung: bool) {
        self.state().hung = hung;
    }

    /// From what each start has booted, the first one first.
    pub fn booted(&self) -> Vec<BootDevice> {
        self.state().booted.clone()
    }

    pub fn set_reading(&self, sensor: u8, raw: u8) {
        self.state().readings.insert(sensor, raw);
    }
}

impl State {
    fn start(&mut self) {
        self.on = true;
        self.starts += 1;
        let device = match std::mem::replace(&mut self.boot.once, BootDevice::None) {
            BootDevice::None => self.boot.always,
            once => once,
        };
        self.booted.push(device);
    }
}

impl Hardware for InMemory {
    fn is_on(&self) -> Result<bool> {
        Ok(self.state().on)
    }

    fn reset(&self, how: Reset) -> Result<()> {
        let mut state = self.state();
        match (how, state.on) {
            (Reset::On | Reset::PushPowerButton, false) => state.start(),
            (Reset::ForceOff, _) => state.on = false,
            (Reset::GracefulShutdown | Reset::PushPowerButton, true) => state.on = state.hung,
            (Reset::ForceRestart | Reset::PowerCycle, true) => state.start(),
            (Reset::PowerCycle, false) => state.start(),
            (Reset::On, true) | (Reset::GracefulShutdown | Reset::ForceRestart, false) => {}
        }
        Ok(())
    }

    fn boot(&self) -> Result<Boot> {
        Ok(self.state().boot)
    }

    fn set_boot(&self, boot: Boot) -> Result<()> {
        self.state().boot = boot;
        Ok(())
    }

    fn starts(&self) -> Result<u64> {
        Ok(self.state().starts)
    }

    fn reading(&self, sensor: &Sensor) -> u8 {
        self.state().readings.get(&sensor.number).copied().unwrap_or(sensor.nominal)
    }
}
