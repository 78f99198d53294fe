//! What became of announces, by name. A refused client shows its user a sentence; the operator sees how often it happened.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $sentence:literal;)*) => {
        /// Why an announce was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal { $($(#[$doc])* $variant,)* }

        impl Refusal {
            pub const ALL: &[Refusal] = &[$(Refusal::$variant,)*];

            /// As metrics write it.
            pub fn name(self) -> &'static str {
                match self { $(Refusal::$variant => $name,)* }
            }

            /// BEP 3's `failure reason`.
            pub fn sentence(self) -> &'static str {
                match self { $(Refusal::$variant => $sentence,)* }
            }
        }
    };
}

refusals! {
    /// A parameter is missing, twice there, or not of its kind.
    Malformed = "torrent-malformed", "the announce cannot be read";
    /// No image of the catalogue has this info hash.
    UnknownTorrent = "torrent-unknown", "no image has this info hash; fetch the .torrent again";
    /// 0, or one that belongs to a system service.
    Port = "torrent-forged-port", "nobody listens for peers on this port";
    /// Byte counts that cannot be for this image.
    Size = "torrent-forged-size", "the byte counts do not fit the image";
    /// The client's address lies in no network that is served.
    Outside = "torrent-outside", "this address lies in no network that is served";
    /// More ports of one address than one machine has clients.
    ClientBusy = "torrent-client-busy", "this address announces too many clients";
    SwarmFull = "torrent-swarm-full", "there are too many clients";
}

#[derive(Debug, Default)]
pub struct Counters {
    answered: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    torrents: AtomicU64,
}

impl Counters {
    pub fn answered(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    pub fn refused(&self, why: Refusal) {
        if let Some(counter) = self.refused.get(why as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// A `.torrent` was handed out.
    pub fn handed_out(&self) {
        self.torrents.fetch_add(1, Relaxed);
    }

    /// Name and count; zeros too, since a metric that comes and goes cannot be watched.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let refused = Refusal::ALL.iter().zip(&self.refused).map(|(why, n)| (why.name(), n.load(Relaxed)));
        let others = [("torrent-announce", &self.answered), ("torrent-file", &self.torrents)];
        others.into_iter().map(|(name, n)| (name, n.load(Relaxed))).chain(refused).collect()
    }
}
