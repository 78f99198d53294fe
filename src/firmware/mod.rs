//! Firmware and settings of the machines: what a model shall have, and how it gets there.
//!
//! ```text
//! baseline (TOML) ┐
//! names (TOML)    ├─► plan: steps in order, pure ─► progress: what now, pure ─► one act on the BMC ─┐
//! what is seen ───┤                                     ▲                                            │
//! bundle (folder) ┘                                     └── what was tried, written down before ◄────┘
//! ```
//!
//! The machine is looked at after every act and after every restart of the appliance, and the plan is made anew: what took effect
//! is not in it any more. So nothing has to be remembered but what was tried.

pub mod baseline;
pub mod bundle;
pub mod depot;
pub mod names;
pub mod plan;
pub mod progress;
pub mod visit;

pub use baseline::{Baseline, Baselines, Part};
pub use bundle::{Bundle, Bundles};
pub use depot::Depot;
pub use plan::{Plan, Seen, Step, plan};
