//! Tests against real peers: one binary, one module per subject. Those that need root, QEMU or built images say so.

mod agent;
mod bmc;
mod bmc_proxy;
mod bmc_sim;
mod boot;
mod config;
mod conversations;
mod delivery;
mod dhcp_clients;
mod engine;
mod firmware;
mod fuzz;
mod http_files;
mod image;
mod image_import;
mod image_life;
mod layers;
mod loader;
mod net;
mod rack;
mod relay;
mod site;
mod swarm;
mod switch;
mod tftp;
mod wire;
