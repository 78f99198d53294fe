//! Why a packet got no answer. A silent server looks like a dead one; each silence has a name and a count here.

use crate::count::{Tally, named};

named! {
    /// Why nothing was sent.
    Silence {
        /// Shorter than a BOOTP header with the DHCP cookie, or without the cookie.
        Malformed = "malformed",
        /// `op` is not BOOTREQUEST: another server's answer.
        NotRequest = "not-a-request",
        /// Not Ethernet with 6-byte addresses, or an address that no card has (multicast, zero).
        NotEthernet = "not-ethernet",
        /// No message type (option 53), or one that only servers send.
        NoMessageType = "no-message-type",
        /// More than 16 relays on the way: a loop.
        TooManyHops = "too-many-hops",
        /// The client chose, or talks to, another DHCP server.
        OtherServer = "other-server",
        /// Came through a relay, or from an address, of a network that is not configured.
        UnknownNetwork = "unknown-network",
        /// Every address of the subnet is taken.
        PoolEmpty = "pool-empty",
        /// The address for this client is being probed; it asks again.
        Probing = "probing",
        /// More requests of machines that nobody knows than are answered a second.
        TooManyStrangers = "too-many-strangers",
        /// ProxyDHCP: about an address, or of a system that boots nothing.
        NotProxied = "not-proxied",
        /// ProxyDHCP: no boot file for this architecture.
        NoBootFile = "no-boot-file",
        /// Somebody else was found on the address that was to be offered.
        AddressInUse = "address-in-use",
        /// A REQUEST or INFORM that names no address in any way.
        NoAddressAsked = "no-address-asked",
        /// RELEASE of a lease: takes effect, and is never answered (RFC 2131 section 4.4.4).
        Released = "released",
        /// DECLINE: the address is set aside, and is never answered.
        Declined = "declined",
        /// RELEASE or DECLINE of an address that this client does not hold.
        NotHolder = "not-holder",
        /// More leases wait for the disk than the queue holds; the client asks again.
        StoreBusy = "store-busy",
        /// The lease did not reach the disk, so it was not granted.
        StoreFailed = "store-failed",
        /// The kernel did not take the answer.
        SendFailed = "send-failed",
        /// TFTP: not a request, nor an answer, that can be read.
        TftpMalformed = "tftp-malformed",
        /// TFTP: an answer to no transfer: of a stranger, or too late.
        TftpStray = "tftp-stray",
        /// TFTP: too many transfers at once, altogether or for one client.
        TftpBusy = "tftp-busy",
    }
}

named! {
    /// What was sent.
    Answer {
        Offer = "offer",
        Ack = "ack",
        Nak = "nak",
        TftpTransfer = "tftp-transfer",
        TftpComplete = "tftp-complete",
        TftpGivenUp = "tftp-given-up",
        TftpRefused = "tftp-refused",
        RouterAdvertisement = "router-advertisement",
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    silent: Tally<Silence>,
    sent: Tally<Answer>,
}

impl Counters {
    pub fn silent(&self, why: Silence) {
        self.silent.add(why);
    }

    pub fn sent(&self, what: Answer) {
        self.sent.add(what);
    }

    /// Name and count, silences first.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.silent.snapshot().chain(self.sent.snapshot()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_name() {
        let counters = Counters::default();
        counters.silent(Silence::TftpBusy);
        counters.silent(Silence::TftpBusy);
        counters.sent(Answer::RouterAdvertisement);
        let counted: Vec<_> = counters.snapshot().into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [("tftp-busy", 2), ("router-advertisement", 1)]);
    }
}
