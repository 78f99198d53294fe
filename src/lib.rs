//! Rackline: racked, blank servers in, delivered hypervisor hosts out.
//!
//! The modules in reading order; each may use only those above it (`tests/it/layers.rs` holds the table).

pub mod error;
pub mod count;
pub mod durable;
pub mod machine;
pub mod role;
pub mod check;
pub mod link;
pub mod ipmi;
pub mod template;
pub mod judge;
pub mod lifecycle;
pub mod outlet;
pub mod config;
pub mod store;
pub mod httpd;
pub mod boot;
pub mod bmc;
pub mod firmware;
pub mod image;
pub mod swarm;
pub mod handoff;
pub mod agent;
pub mod engine;
pub mod api;
pub mod console;
pub mod lab;
pub mod cli;
