//! Tests against real peers: one binary, one module per subject.

mod bmc;
mod bmc_proxy;
mod bmc_sim;
