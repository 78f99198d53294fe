//! Which consoles are recorded, and when: decided here and nowhere else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::bmc::doors;
use crate::bmc::sol::{Consoles, Door};
use crate::lifecycle::{Machine, State};
use crate::machine::MachineId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// From the first power-on by us, or the first sign of life, until it is delivered, broken or retired.
    Boot,
    Always,
    Never,
}

impl Engine {
    /// The way in to the BMCs of this engine's machines.
    pub fn console_door(&self) -> Door {
        let engine = self.clone();
        Arc::new(move |id| {
            let engine = engine.clone();
            async move { engine.access_by_id(id).await }.boxed()
        })
    }
}

/// What is remembered between two changes of a machine.
struct Follower {
    consoles: Consoles,
    recorded: Recorded,
    /// Those that are recorded, with the state that was noted last.
    states: HashMap<MachineId, &'static str>,
    /// Never seen, but switched on by us.
    powered: HashSet<MachineId>,
}

/// Starts and ends recordings as the machines change.
pub async fn record(engine: Engine, consoles: Consoles, recorded: Recorded, stop: CancellationToken) {
    if recorded == Recorded::Never {
        return;
    }
    let (mut changes, mut boots) = (engine.changes(), engine.boots());
    let mut follower = Follower { consoles, recorded, states: HashMap::new(), powered: HashSet::new() };
    // Of an appliance that was restarted: their recordings go on.
    engine.machines().iter().for_each(|machine| follower.consider(machine, true));
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(id) => follower.look(&engine, id),
                Err(RecvError::Lagged(_)) => engine.machines().iter().for_each(|machine| follower.consider(machine, false)),
                Err(RecvError::Closed) => return,
            },
            boot = boots.recv() => match boot {
                Ok(id) => follower.boots(&engine, id),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            () = stop.cancelled() => return,
        }
    }
}

impl Follower {
    fn look(&mut self, engine: &Engine, id: MachineId) {
        match engine.machine(id) {
            Some(machine) => self.consider(&machine, false),
            None => self.leave(id),
        }
    }

    fn consider(&mut self, machine: &Machine, again: bool) {
        if !wanted(self.recorded, machine, self.powered.contains(&machine.id)) {
            self.leave(machine.id);
            return;
        }
        let state = machine.state.name();
        match self.states.insert(machine.id, state) {
            None => {
                self.consoles.record(machine.id, again);
                self.consoles.note(machine.id, state);
            }
            Some(before) if before != state => self.consoles.note(machine.id, state),
            Some(_) => {}
        }
    }

    /// A boot of our making is about to begin: it is one recording, from before the first byte on.
    fn boots(&mut self, engine: &Engine, id: MachineId) {
        let Some(machine) = engine.machine(id) else { return };
        self.powered.insert(id);
        if wanted(self.recorded, &machine, true) {
            self.consoles.record(id, false);
            self.consoles.note(id, machine.state.name());
            self.states.insert(id, machine.state.name());
        }
    }

    fn leave(&mut self, id: MachineId) {
        self.powered.remove(&id);
        if self.states.remove(&id).is_some() {
            self.consoles.leave(id);
        }
    }
}

fn wanted(recorded: Recorded, machine: &Machine, powered: bool) -> bool {
    // Redfish has no serial console.
    let has_console = machine.bmc.as_ref().is_some_and(|bmc| doors(bmc).ipmi.is_some());
    let matters = match (recorded, &machine.state) {
        (Recorded::Never, _) | (_, State::Retired) => false,
        (Recorded::Always, _) => true,
        (Recorded::Boot, State::Expected) => powered,
        (Recorded::Boot, State::Delivered { .. } | State::Broken { .. }) => false,
        (Recorded::Boot, _) => true,
    };
    has_console && matters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::lifecycle::BmcAccount;
    use crate::link::Problem;

    #[test]
    fn a_console_is_recorded_from_power_on_until_the_end_of_the_way() {
        let bmc = |redfish: Option<&str>| BmcAccount {
            address: "10.77.1.1:623".parse().unwrap(),
            redfish: redfish.map(|address| address.parse().unwrap()),
            user: "admin".into(),
        };
        let problem = Problem::from(&Error::internal("x", "x"));
        let broken = State::Broken { problem, stage: "deploying".into() };
        let asked = |state: &State, bmc: Option<BmcAccount>, powered| {
            let mut machine = Machine::new(MachineId::generate(), "a".into(), 0, state.clone());
            machine.bmc = bmc;
            [Recorded::Never, Recorded::Boot, Recorded::Always].map(|recorded| wanted(recorded, &machine, powered))
        };
        let by_ipmi = || Some(bmc(None));
        assert_eq!(asked(&State::Expected, by_ipmi(), false), [false, false, true]);
        assert_eq!(asked(&State::Expected, by_ipmi(), true), [false, true, true]);
        assert_eq!(asked(&State::Deploying, by_ipmi(), false), [false, true, true]);
        assert_eq!(asked(&broken, by_ipmi(), true), [false, false, true]);
        assert_eq!(asked(&State::Retired, by_ipmi(), true), [false; 3]);
        assert_eq!(asked(&State::Deploying, None, true), [false; 3]);
        assert_eq!(asked(&State::Deploying, Some(bmc(Some("10.77.1.1:623"))), true), [false; 3]);
        assert_eq!(asked(&State::Deploying, Some(bmc(Some("10.77.1.1:443"))), true), [false, true, true]);
    }
}
