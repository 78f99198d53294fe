//! What became of announces, by name. A refused client shows its user a sentence; the operator sees how often it happened.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::count::{Tally, named};

named! {
    /// Why an announce was refused.
    Refusal {
        /// A parameter is missing, twice there, or not of its kind.
        Malformed = "torrent-malformed",
        /// No image of the catalogue has this info hash.
        UnknownTorrent = "torrent-unknown",
        /// 0, or one that belongs to a system service.
        Port = "torrent-forged-port",
        /// Byte counts that cannot be for this image.
        Size = "torrent-forged-size",
        /// The client's address lies in no network that is served.
        Outside = "torrent-outside",
        /// More ports of one address than one machine has clients.
        ClientBusy = "torrent-client-busy",
        SwarmFull = "torrent-swarm-full",
    }
}

impl Refusal {
    /// BEP 3's `failure reason`.
    pub fn sentence(self) -> &'static str {
        match self {
            Refusal::Malformed => "the announce cannot be read",
            Refusal::UnknownTorrent => "no image has this info hash; fetch the .torrent again",
            Refusal::Port => "nobody listens for peers on this port",
            Refusal::Size => "the byte counts do not fit the image",
            Refusal::Outside => "this address lies in no network that is served",
            Refusal::ClientBusy => "this address announces too many clients",
            Refusal::SwarmFull => "there are too many clients",
        }
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    answered: AtomicU64,
    refused: Tally<Refusal>,
    torrents: AtomicU64,
}

impl Counters {
    pub fn answered(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    pub fn refused(&self, why: Refusal) {
        self.refused.add(why);
    }

    /// A `.torrent` was handed out.
    pub fn handed_out(&self) {
        self.torrents.fetch_add(1, Relaxed);
    }

    /// Name and count.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let others = [("torrent-announce", &self.answered), ("torrent-file", &self.torrents)];
        others.into_iter().map(|(name, n)| (name, n.load(Relaxed))).chain(self.refused.snapshot()).collect()
    }
}
