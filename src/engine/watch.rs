//! The engine as the site of the BMC sweep: which machines there are, how their BMCs are entered, and a line in the timeline
//! where something changed.

use std::sync::Arc;
use std::time::Duration;

use super::{About, Engine};
use crate::bmc::Access;
pub use crate::bmc::sweep::Health;
use crate::bmc::sweep::{Roster, Sweep};
use crate::error::Result;
use crate::lifecycle::{Event, State};
use crate::machine::MachineId;

impl Engine {
    /// From now on, looks at every machine's BMC once in this time.
    pub fn sweep(&self, interval: Duration) {
        let sweep = Sweep::new(self.inner.site.fleet.clone(), interval);
        if self.inner.sweep.set(sweep.clone()).is_ok() {
            tokio::spawn(sweep.run(Arc::new(self.clone()), self.inner.stop.clone()));
        }
    }

    /// What the machine's BMC said last; `None` where it has not been looked at.
    pub fn health(&self, machine: MachineId) -> Option<Arc<Health>> {
        self.inner.sweep.get()?.health(machine)
    }
}

impl Roster for Engine {
    fn machines(&self) -> Vec<MachineId> {
        let watched = |m: &super::Machine| m.bmc.is_some() && m.state != State::Retired;
        Engine::machines(self).iter().filter(|m| watched(m)).map(|m| m.id).collect()
    }

    async fn access(&self, machine: MachineId) -> Result<Access> {
        self.access_by_id(machine).await
    }

    fn changed(&self, machine: MachineId, sentence: String) {
        self.tell(About::Machine(machine), Event::Noted { sentence });
    }
}
