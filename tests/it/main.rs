//! Tests against real peers: one binary, one module per subject.

mod bmc;
mod bmc_sim;
