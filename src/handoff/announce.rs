//! What the world outside is told of a machine: an event of CloudEvents 1.0 for each state that matters to others.
//!
//! Made from two states, so that a fact that changes no state announces nothing. It holds what a receiver needs to act without
//! asking back, and no secret.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lifecycle::{Machine, Millis, State};
use crate::machine::{MachineId, Severity};

/// What may be asked for as `events` of a receiver.
pub const KINDS: &[&str] = &["ready", "deploying", "delivered", "broken", "releasing", "released", "retired"];
/// What a receiver gets that asks for nothing in particular.
pub const USUAL: &[&str] = &["delivered", "broken", "released"];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    pub id: uuid::Uuid,
    /// One of [`KINDS`].
    pub kind: String,
    pub at: Millis,
    pub machine: MachineId,
    pub name: String,
    pub facts: Value,
}

impl Announcement {
    /// `None`: the state is the same, or nobody's business.
    pub fn of(before: &Machine, after: &Machine, at: Millis) -> Option<Self> {
        if before.state.name() == after.state.name() {
            return None;
        }
        let kind = match (&before.state, &after.state) {
            // In one turn also straight into the next order.
            (State::Releasing, State::Ready | State::Allocated | State::Deploying) => "released",
            (_, state) => state.name(),
        };
        let kind = KINDS.contains(&kind).then(|| kind.to_owned())?;
        let facts = facts(after);
        Some(Self { id: uuid::Uuid::now_v7(), kind, at, machine: after.id, name: after.name.clone(), facts })
    }

    /// CloudEvents 1.0.2, JSON format, section 2.2: the required attributes, `subject`, `time` and `data`.
    pub fn cloud_event(&self, site: &str) -> Value {
        let time = jiff::Timestamp::from_millisecond(self.at).unwrap_or_default();
        json!({
            "specversion": "1.0",
            "id": self.id,
            "source": format!("/rackline/{}", site.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-")),
            "type": format!("rackline.machine.{}", self.kind),
            "subject": self.name,
            "time": time.to_string(),
            "datacontenttype": "application/json",
            "data": self.facts,
        })
    }
}

/// What is known of a machine, flat, each key always there, so that a template can rely on it.
pub fn facts(m: &Machine) -> Value {
    let problem = match &m.state {
        State::Broken { problem, .. } => Some(problem),
        _ => None,
    };
    let system = m.inventory.as_ref().map(|i| &i.system);
    let worst = m.findings.iter().map(|f| f.severity).max().unwrap_or(Severity::Note);
    json!({
        "machine": m.id,
        "name": m.name,
        "state": m.state.name(),
        "serial": m.serial,
        "uuid": m.uuid,
        "rack": m.place.as_ref().map(|p| &p.rack),
        "unit": m.place.as_ref().map(|p| p.unit),
        "model": system.and_then(|s| s.product.as_ref()),
        "role": m.order.as_ref().map(|o| &o.role),
        "roles": m.order.iter().flat_map(|o| o.role.iter()).collect::<Vec<_>>(),
        "hostname": m.order.as_ref().map(|o| &o.hostname),
        "address": m.address,
        "image": m.order.as_ref().map(|o| &o.image_name),
        "manifest": m.deployed.as_ref().map(|d| d.manifest),
        "problem": problem.map(|p| json!({ "code": p.code, "title": p.title, "hint": p.hint })),
        "findings": m.findings.iter().filter(|f| f.severity == worst).map(ToString::to_string).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::passport::tests::large;
    use super::*;
    use crate::link::Problem;
    use crate::machine::Role;

    fn in_state(state: State) -> Machine {
        Machine { state, ..large(Role::Kvm) }
    }

    #[test]
    fn a_state_that_matters_is_announced_once() {
        let problem = Problem { code: "x".into(), title: "fan 3 stands still".into(), hint: None, causes: vec![] };
        let broken = in_state(State::Broken { problem, stage: "verifying".into() });
        let told = |before: &Machine, after: &Machine| Announcement::of(before, after, 1).map(|a| a.kind);
        let (verifying, releasing) = (in_state(State::Verifying), in_state(State::Releasing));
        assert_eq!(told(&verifying, &broken), Some("broken".into()));
        assert_eq!(told(&broken, &broken), None);
        assert_eq!(told(&releasing, &in_state(State::Ready)), Some("released".into()));
        assert_eq!(told(&releasing, &in_state(State::Deploying)), Some("released".into()));
        assert_eq!(told(&in_state(State::Commissioning), &in_state(State::Ready)), Some("ready".into()));
        assert_eq!(told(&in_state(State::Deploying), &verifying), None);
    }

    #[test]
    fn it_is_a_cloud_event() {
        let after = in_state(State::Retired);
        let event =
            Announcement::of(&in_state(State::Ready), &after, 1_790_000_000_000).unwrap().cloud_event("hall 3/b");
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["type"], "rackline.machine.retired");
        assert_eq!(event["source"], "/rackline/hall-3-b");
        assert_eq!(event["time"], "2026-09-21T14:13:20Z");
        assert_eq!(event["data"]["hostname"], "hv-0412.site.example");
        assert_eq!(event["data"]["unit"], 30);
        assert!(event["data"]["problem"].is_null());
    }
}
