//! Tests against real peers: one binary, one module per subject. Those that need root, QEMU or built images say so.

mod agent;
mod bmc;
mod bmc_proxy;
mod bmc_sim;
mod boot;
mod config;
mod delivery;
mod engine;
mod http_files;
mod image;
mod layers;
mod loader;
mod net;
mod rack;
mod site;
