//! One announce, read from the query of its URL (BEP 3; BEP 23 `compact` is what every answer is). Nothing in it is trusted:
//! it is of one kind or refused.
//!
//! The client's address is that of its connection. `ip`, `ipv4` and `ipv6` (BEP 3, BEP 7) are passed over: a machine that
//! names another as the one that has the image would send everybody there.

use percent_encoding::percent_decode;

use super::count::Refusal;
use super::metainfo::InfoHash;

/// Parameters in one query; clients send about twelve.
const MAX_PARAMETERS: usize = 32;
/// Peers in one answer: as asked, at most these. 50 is what BEP 3 has in mind, and 80 addresses fit one packet.
const DEFAULT_PEERS: usize = 50;
const MAX_PEERS: usize = 80;
/// Ports below belong to system services: peers that are sent there would be knocking at a machine's SSH.
const LOWEST_PORT: u16 = 1024;
/// A client may have to fetch a piece again that did not pass its hash, but not everything this often.
const MAX_WASTE: u64 = 64;
/// Nobody has this many peers to send everything to.
const MAX_COPIES: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Started,
    Completed,
    Stopped,
    /// None, or one that says nothing new here, as BEP 21's `paused`.
    Regular,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announce {
    pub info_hash: InfoHash,
    pub port: u16,
    /// Bytes that the client lacks.
    pub left: u64,
    pub downloaded: u64,
    pub uploaded: u64,
    pub event: Event,
    /// Peers that are wanted, at most [`MAX_PEERS`].
    pub wanted: usize,
}

impl Announce {
    pub fn parse(query: &str) -> Result<Self, Refusal> {
        let parameters = Parameters::of(query)?;
        let info_hash = parameters.get("info_hash").and_then(|hash| hash.try_into().ok()).ok_or(Refusal::Malformed)?;
        if parameters.get("peer_id").is_none_or(|id| id.len() != 20) {
            return Err(Refusal::Malformed);
        }
        let port = parameters.number("port")?.ok_or(Refusal::Malformed)?;
        let event = match parameters.get("event") {
            None | Some(b"" | b"paused") => Event::Regular,
            Some(b"started") => Event::Started,
            Some(b"completed") => Event::Completed,
            Some(b"stopped") => Event::Stopped,
            Some(_) => return Err(Refusal::Malformed),
        };
        let wanted = match parameters.get("numwant") {
            // -1 and the like: as many as we see fit.
            None | Some(b"" | [b'-', ..]) => DEFAULT_PEERS,
            Some(_) => usize::try_from(parameters.number("numwant")?.unwrap_or(0)).unwrap_or(MAX_PEERS).min(MAX_PEERS),
        };
        Ok(Self {
            info_hash: InfoHash(info_hash),
            port: u16::try_from(port).ok().filter(|port| *port >= LOWEST_PORT).ok_or(Refusal::Port)?,
            left: parameters.number("left")?.ok_or(Refusal::Malformed)?,
            downloaded: parameters.number("downloaded")?.unwrap_or(0),
            uploaded: parameters.number("uploaded")?.unwrap_or(0),
            event,
            wanted,
        })
    }

    /// Whether the byte counts can be true of a payload of `length` bytes.
    pub fn fits(&self, length: u64) -> Result<(), Refusal> {
        let whole = self.event != Event::Completed || self.left == 0;
        let likely = self.left <= length
            && self.downloaded <= length.saturating_mul(MAX_WASTE)
            && self.uploaded <= length.saturating_mul(MAX_COPIES);
        if whole && likely { Ok(()) } else { Err(Refusal::Size) }
    }
}

/// Names as they came, values decoded: an info hash is bytes, not text.
struct Parameters<'a>(Vec<(&'a str, Vec<u8>)>);

impl<'a> Parameters<'a> {
    fn of(query: &'a str) -> Result<Self, Refusal> {
        let mut list: Vec<(&str, Vec<u8>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Two info hashes, or two ports: whichever is taken, the other is meant.
            if list.len() == MAX_PARAMETERS || list.iter().any(|(other, _)| *other == name) {
                return Err(Refusal::Malformed);
            }
            list.push((name, percent_decode(value.as_bytes()).collect()));
        }
        Ok(Self(list))
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_slice())
    }

    /// In decimal digits only; `parse` would take a sign.
    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        digits.and_then(|text| text.parse().ok()).map(Some).ok_or(Refusal::Malformed)
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    pub const HASH: &str = "%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A";
    const ID: &str = "-TR4000-abcdefghijkl";

    fn query(more: &str) -> String {
        format!("info_hash={HASH}&peer_id={ID}&port=6882&uploaded=0&downloaded=0&left=100&compact=1{more}")
    }

    #[test]
    fn what_transmission_sends() {
        let announce = Announce::parse(&query("&numwant=80&key=AB12&supportcrypto=1&event=started")).unwrap();
        let hash = [
            0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x12, 0x34, 0x56,
            0x78, 0x9a,
        ];
        assert_eq!(announce.info_hash, InfoHash(hash), "the example of the old specification");
        assert_eq!((announce.port, announce.left, announce.event, announce.wanted), (6882, 100, Event::Started, 80));
        assert_eq!(Announce::parse(&query("")).unwrap().wanted, DEFAULT_PEERS);
        assert_eq!(Announce::parse(&query("&numwant=-1")).unwrap().wanted, DEFAULT_PEERS);
        assert_eq!(Announce::parse(&query("&numwant=0")).unwrap().wanted, 0);
        assert_eq!(Announce::parse(&query("&numwant=18446744073709551615")).unwrap().wanted, MAX_PEERS);
    }

    #[test]
    fn what_is_not_of_its_kind_is_refused_by_name() {
        let good = query("");
        for (from, to, why) in [
            ("port=6882", "port=0", Refusal::Port),
            ("port=6882", "port=22", Refusal::Port),
            ("port=6882", "port=72418", Refusal::Port),
            ("port=6882", "port=-1", Refusal::Malformed),
            ("port=6882", "port=+6882", Refusal::Malformed),
            ("port=6882", "port=6882&port=6883", Refusal::Malformed),
            ("port=6882&", "", Refusal::Malformed),
            ("left=100", "left=", Refusal::Malformed),
            ("left=100", "left=1e3", Refusal::Malformed),
            ("left=100", "left=99999999999999999999", Refusal::Malformed),
            ("left=100&", "", Refusal::Malformed),
            ("%124V", "%12", Refusal::Malformed),
            ("info_hash", "info_cash", Refusal::Malformed),
            (ID, "me", Refusal::Malformed),
            ("compact=1", "event=finished", Refusal::Malformed),
        ] {
            assert_ne!(good.replace(from, to), good);
            assert_eq!(Announce::parse(&good.replace(from, to)), Err(why), "{from} -> {to}");
        }
        let many: String = (0..MAX_PARAMETERS).map(|n| format!("&x{n}=1")).collect();
        assert_eq!(Announce::parse(&query(&many)), Err(Refusal::Malformed));
    }

    #[test]
    fn byte_counts_that_cannot_be() {
        let counts =
            |text: &str| Announce::parse(&query("").replace("uploaded=0&downloaded=0&left=100", text)).unwrap();
        for (text, fits) in [
            ("uploaded=0&downloaded=0&left=1000", true),
            ("uploaded=5000&downloaded=2000&left=0&event=completed", true),
            ("uploaded=0&downloaded=0&left=1001", false),
            ("uploaded=0&downloaded=0&left=1&event=completed", false),
            ("uploaded=0&downloaded=99999&left=0", false),
            ("uploaded=18446744073709551615&downloaded=0&left=0", false),
        ] {
            assert_eq!(counts(text).fits(1000).is_ok(), fits, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(text in ".{0,200}", tail in "[a-z_=&%0-9]{0,200}") {
            let _ = Announce::parse(&text);
            if let Ok(announce) = Announce::parse(&query(&tail)) {
                prop_assert!(announce.port >= LOWEST_PORT && announce.wanted <= MAX_PEERS);
            }
        }
    }
}
