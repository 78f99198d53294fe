//! What the boot services see of the engine: sightings go in, the boot question is answered from memory.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{About, Engine};
use crate::boot::bmc::BmcSighting;
use crate::boot::explain::{MASKED, Preview, Previewed};
use crate::boot::{BootAnswer, Facts, Policy, RelayPort, Sighting, Stage, Unanswered};
use crate::error::Result;
use crate::lifecycle::{self, BootChoice, Event, Occupant, SeenPort, State, SwitchPort};
use crate::machine::{MacAddr, MachineId};

impl Policy for Engine {
    fn sighted(&self, sighting: Sighting) {
        self.tell(About::Mac(sighting.mac), self.fact(&sighting));
    }

    /// For the timeline of a machine that is known; a stranger's silence is counted by the boot services alone.
    fn unanswered(&self, unanswered: Unanswered) {
        if let Some(machine) = self.world().by_mac(unanswered.mac) {
            self.tell(About::Machine(machine.id), Event::Unanswered { why: unanswered.why });
        }
    }

    fn facts(&self, mac: MacAddr) -> Option<Facts> {
        let machine = self.world().by_mac(mac)?;
        Some(Facts {
            name: machine.name.clone(),
            model: machine.inventory.as_ref().and_then(|i| i.system.product.clone()),
            role: machine.order.as_ref().map(|o| o.role.clone()),
            state: machine.state.name(),
        })
    }

    fn noted(&self, mac: MacAddr, sentence: String) {
        if let Some(machine) = self.world().by_mac(mac) {
            self.tell(About::Machine(machine.id), Event::Noted { sentence });
        }
    }

    fn is_bmc(&self, mac: MacAddr) -> bool {
        // A host may share a card with its BMC, and its address.
        self.world().by_bmc(mac).is_some_and(|machine| !machine.macs.contains(&mac))
    }

    fn bmc_sighted(&self, sighting: BmcSighting) {
        self.met_bmc(sighting);
    }

    fn boot_answer(&self, asking: Sighting) -> BoxFuture<'_, Result<BootAnswer>> {
        async move {
            let known = self.world().by_mac(asking.mac);
            let machine = match known {
                // Where another server gave the address, this is the first that is seen of the boot.
                Some(machine) if machine.state != State::Expected => machine,
                _ => {
                    let id = self.submit(About::Mac(asking.mac), self.fact(&asking)).await?;
                    self.find(&id.to_string())?
                }
            };
            let choice = lifecycle::boot_choice(&machine);
            let named = match &choice {
                BootChoice::Agent => "the agent".to_owned(),
                BootChoice::LocalDisk if machine.comes_back => {
                    format!("its own disk, though it came back {} times", machine.boots)
                }
                BootChoice::LocalDisk => "its own disk".to_owned(),
                BootChoice::Hold { reason } => format!("nothing, held: {reason}"),
            };
            self.tell(About::Machine(machine.id), Event::ScriptServed { choice: named });
            Ok(match choice {
                BootChoice::Agent => BootAnswer::Agent { machine: machine.id, token: self.token(machine.id) },
                BootChoice::LocalDisk => BootAnswer::LocalDisk { machine: machine.id },
                BootChoice::Hold { reason } => BootAnswer::Hold { reason },
            })
        }
        .boxed()
    }
}

impl Preview for Engine {
    fn preview(&self, mac: MacAddr) -> Previewed {
        let token = MASKED.to_owned();
        let Some(machine) = self.world().by_mac(mac) else {
            // It becomes a machine of its own with its first request.
            let answer = BootAnswer::Agent { machine: MachineId(uuid::Uuid::nil()), token };
            let why = "a machine that nobody knows boots the agent, which says which one it is".to_owned();
            return Previewed { arch: None, answer, why };
        };
        let state = machine.state.name();
        let (answer, why) = match lifecycle::boot_choice(&machine) {
            BootChoice::Agent => {
                (BootAnswer::Agent { machine: machine.id, token }, format!("a machine that is {state} boots the agent"))
            }
            BootChoice::LocalDisk => {
                let answer = BootAnswer::LocalDisk { machine: machine.id };
                (answer, format!("a machine that is {state} boots its own disk"))
            }
            BootChoice::Hold { reason } => {
                (BootAnswer::Hold { reason: reason.clone() }, format!("it is {state} and held: {reason}"))
            }
        };
        Previewed { arch: machine.arch, answer, why }
    }
}

impl Engine {
    fn fact(&self, sighting: &Sighting) -> Event {
        Event::Sighted(lifecycle::Sighting {
            mac: sighting.mac,
            uuid: sighting.uuid,
            arch: sighting.arch,
            address: sighting.address,
            boots: sighting.stage != Stage::System,
            limit: self.inner.site.boot_limit,
            port: sighting.relay.as_ref().and_then(|relay| self.seen_port(relay)),
        })
    }

    /// Where the port map has the port behind a relay, and whom it expects there.
    fn seen_port(&self, relay: &RelayPort) -> Option<SeenPort> {
        let located = self.switches().locate(relay)?;
        let expects = located.expects.map(|name| {
            let place = self.world().by_name(&name).and_then(|machine| machine.place.clone());
            Occupant { name, place }
        });
        Some(SeenPort { at: SwitchPort { switch: located.switch, port: located.port }, expects })
    }
}
