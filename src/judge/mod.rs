//! Whether a machine is right: what it should be and what was found of it in, findings out. Pure: nothing is asked or stored here.
//!
//! [`hardware`] needs nothing but the inventory: a link at 100 Mb/s is wrong in every machine. [`model`] compares with what was
//! bought, [`cohort`] with machines that are built alike, [`changed`] two inventories of one machine.

pub mod changed;
pub mod cohort;
pub mod hardware;
pub mod history;
pub mod model;
