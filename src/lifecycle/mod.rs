//! What a machine goes through, as pure rules: no clock, no socket, no database.
//!
//! [`decide`] takes what is known of a machine and one fact, and answers with what is known now and what to do outside.
//! Every pair of state and event is answered; what is not welcome is [`Refused`] with the reason. Replaying a machine's
//! accepted events gives its state (a property test in `tests.rs`).
//!
//! Three questions are answered from the state alone and change nothing: [`boot_choice`] (what to boot), [`task`] (what the
//! agent is to do) and [`Machine::waiting`] (why it does not move on by itself).

mod baseline;
mod burn;
mod cabling;
mod event;
pub mod ladder;
mod machine;
pub mod passport;
mod recheck;
mod stage;
#[cfg(test)]
mod tests;

pub use crate::machine::SwitchPort;
pub use baseline::{Attempt, Baseline, BaselineEnd, BaselineNews, Finding};
pub use burn::{BurnIn, TestDone};
pub use cabling::{Occupant, SeenPort};
pub use event::{Action, BmcAccount, Event, Expectation, OWN_BMC_USER, Order, Refused, Sighting};
pub use machine::{AgentSeen, BmcPassword, Erased, Machine, Millis, StageTime, State, Waiting};
pub use recheck::Recheck;

use crate::link::Mode;

/// What came of one event: the machine as it is now, and what is to be done outside, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub machine: Machine,
    pub actions: Vec<Action>,
}

/// A step in the making: stages change the machine through it, so that entering a state always keeps the books.
pub(crate) struct Turn {
    pub now: Millis,
    pub machine: Machine,
    pub actions: Vec<Action>,
}

/// The whole of the rules: one fact in, one step out.
pub fn decide(now: Millis, machine: &Machine, event: &Event) -> Result<Step, Refused> {
    let mut turn = Turn { now, machine: machine.clone(), actions: Vec::new() };
    turn.machine.sequence += 1;
    if !stage::anywhere(&mut turn, event)? {
        match &machine.state {
            State::Expected => stage::expected::on(&mut turn, event),
            State::Seen => stage::seen::on(&mut turn, event),
            State::Enlisted | State::Commissioning => stage::commissioning::on(&mut turn, event),
            State::Ready | State::Allocated => stage::ready::on(&mut turn, event),
            State::Deploying => stage::deploying::on(&mut turn, event),
            State::Verifying => stage::verifying::on(&mut turn, event),
            State::Delivered { .. } => stage::delivered::on(&mut turn, event),
            State::Releasing => stage::releasing::on(&mut turn, event),
            State::Broken { .. } => stage::broken::on(&mut turn, event),
            State::Retired => Err(Refused::state("the machine is retired")),
        }?;
    }
    for mode in [Mode::Ram, Mode::Resident] {
        if task(machine, mode) != task(&turn.machine, mode) {
            turn.machine.number = turn.machine.sequence;
        }
    }
    Ok(Step { machine: turn.machine, actions: turn.actions })
}

impl Turn {
    /// Enters a state: the time spent in the old one is booked, its deadline and its attempts are gone.
    pub fn enter(&mut self, state: State) {
        let machine = &mut self.machine;
        machine.times.push(StageTime { state: machine.state.name().to_owned(), millis: self.now - machine.entered });
        machine.state = state;
        machine.entered = self.now;
        machine.deadline = None;
        machine.ladder = ladder::Ladder::default();
        machine.boots = 0;
        machine.comes_back = false;
    }

    /// From here on the machine has `millis` to bring the next fact.
    pub fn expect_within(&mut self, millis: Millis) {
        self.machine.deadline = Some(self.now + millis);
    }

    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub fn broken(&mut self, problem: crate::link::Problem) {
        let stage = self.machine.state.name().to_owned();
        self.enter(State::Broken { problem, stage });
    }

    /// The machine shall boot from the network now; without a BMC a person has to do it.
    pub fn network_boot(&mut self) {
        if self.machine.bmc.is_some() {
            self.act(Action::NetworkBoot);
            self.machine.ladder.asked = Some(self.now);
        }
    }
}

/// What the machine is to boot, from its state alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootChoice {
    Agent,
    LocalDisk,
    Hold { reason: String },
}

pub fn boot_choice(machine: &Machine) -> BootChoice {
    match &machine.state {
        State::Expected
        | State::Seen
        | State::Enlisted
        | State::Commissioning
        | State::Ready
        | State::Allocated
        | State::Deploying
        | State::Releasing => BootChoice::Agent,
        State::Verifying | State::Delivered { .. } => BootChoice::LocalDisk,
        State::Broken { problem, .. } => BootChoice::Hold { reason: problem.title.clone() },
        State::Retired => BootChoice::Hold { reason: "this machine is retired".into() },
    }
}

/// What the agent is to do, without the documents that the engine adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    Wait { reason: String },
    Commission,
    BurnIn,
    Deploy,
    Verify,
    Erase,
    Reboot { reason: String },
}

/// The task that follows from the state, for an agent that runs in `mode`.
pub fn task(machine: &Machine, mode: Mode) -> Task {
    let wait = |reason: &str| Task::Wait { reason: reason.to_owned() };
    match (&machine.state, mode) {
        (State::Expected | State::Seen | State::Enlisted, _) => wait("the machine is being enlisted"),
        (State::Commissioning, Mode::Ram) if machine.baseline_running().is_some() => {
            wait("its firmware and settings are brought to their baseline")
        }
        (State::Commissioning, Mode::Ram) if machine.burning().is_some() => Task::BurnIn,
        (State::Commissioning, Mode::Ram) => Task::Commission,
        (State::Ready | State::Allocated, Mode::Ram) => wait("ready for an order"),
        (State::Deploying, Mode::Ram) => Task::Deploy,
        (State::Verifying | State::Delivered { .. }, Mode::Ram) => {
            Task::Reboot { reason: "the installed system takes over".into() }
        }
        (State::Releasing, Mode::Ram) => Task::Erase,
        (State::Verifying, Mode::Resident) if machine.checks.is_empty() => Task::Verify,
        (State::Verifying, Mode::Resident) => wait("the passport is being signed"),
        (State::Delivered { .. }, Mode::Resident) if machine.rechecking() => Task::Verify,
        (State::Delivered { .. }, Mode::Resident) => wait("delivered"),
        (State::Releasing, Mode::Resident) => wait("the machine is being released"),
        (State::Broken { problem, .. }, _) => Task::Wait { reason: format!("broken: {}", problem.title) },
        (State::Retired, _) => wait("retired"),
        (_, Mode::Resident) => wait("an old system was booted; waiting for the network boot"),
    }
}

/// Whether an action from the outbox, found again after a restart, still has a point. Looked at before it is repeated.
pub fn still_wanted(machine: &Machine, action: &Action, decided_at: Millis) -> bool {
    match action {
        Action::NetworkBoot => machine.last_sighted.is_none_or(|at| at < decided_at),
        Action::Power { .. } => machine.last_sighted.is_none_or(|at| at < decided_at),
        // Begun or not: `ladder::Step::again` says what may still be done of one that has begun.
        Action::Climb(climb) => machine.ladder.current.as_ref() == Some(climb),
        Action::ChangeBmcPassword => machine.bmc_password == BmcPassword::Wanted,
        // It looks at each setting first.
        Action::BmcSetup => machine.bmc.is_some(),
        Action::Baseline => machine.baseline_running().is_some(),
        Action::SignPassport => matches!(machine.state, State::Verifying),
    }
}
