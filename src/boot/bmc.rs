//! Which DHCP client is a BMC: it gets an address, and never a boot file, and is no machine.
//!
//! | BMC | says | source |
//! |---|---|---|
//! | Dell iDRAC | class (60) `iDRAC` | iDRAC user's guide, "Auto Config": option 60 |
//! | HPE iLO | class `CPQRIB3`, from "Compaq Remote Insight Board" | fingerprint of dhcpv classes in wvtest's `taxonomy` of real devices |
//!
//! Other makers' say nothing of their own, and share the first half of their MAC address with the host's cards. They are
//! known where an agent has seen them from inside, or the list has them ([`Policy::is_bmc`]); nothing is guessed.

use std::net::Ipv4Addr;

use super::dhcp::request::Request;
use super::{Policy, Stage};
use crate::machine::MacAddr;

/// A BMC that has, or was offered, an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BmcSighting {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    /// `None`: known by its MAC address only.
    pub maker: Option<&'static str>,
}

/// Whether a BMC is asking, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    pub maker: Option<&'static str>,
}

/// A firmware that boots from the network is never a BMC, whatever it says besides.
pub fn recognise(request: &Request, policy: &dyn Policy) -> Option<Asking> {
    if request.stage != Stage::System || request.netboot {
        return None;
    }
    let maker = match request.classes.vendor.as_slice() {
        b"iDRAC" => Some("Dell iDRAC"),
        b"CPQRIB3" => Some("HPE iLO"),
        _ => None,
    };
    (maker.is_some() || policy.is_bmc(request.client.mac)).then_some(Asking { maker })
}
