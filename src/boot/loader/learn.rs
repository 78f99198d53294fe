//! Which boot file starts on which network card, learnt from what the card does. Pure: no clock, no socket, no database.
//!
//! DHCP does not say what a firmware can start: whether its SNP or UNDI is sound, whether Secure Boot refuses what Microsoft
//! did not sign. But it can be seen. A boot file that works is fetched, and the next thing heard from that MAC address is
//! the file itself: iPXE asks for an address, GRUB for its script. One that does not is fetched, and the next thing heard is
//! the firmware again, asking from the start.
//!
//! ```text
//!   firmware asks ─► offered ─► fetched ─┬─► the file speaks      it works: remembered, first from now on
//!        ▲                               └─► firmware asks again  it stalls: the next candidate
//!        └──────── asks again unfetched: nothing is learnt (no TFTP, another server, a cable) ◄────┘
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use crate::boot::firmware::Name;
use crate::machine::MacAddr;

/// Times in a row that a file which has worked before must stall until another is tried: the first may have been a reset
/// between its fetching and its first word.
const STRIKES: u8 = 2;

/// What one card has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// What it was offered in this boot, and whether it fetched it.
    offer: Option<(Name, bool)>,
    /// What it fetched and never started; one entry a name.
    stalled: Vec<Name>,
    /// What started last.
    works: Option<Name>,
    /// Times in a row that `works` stalled.
    strikes: u8,
    /// Every candidate stalled since anything started: said once.
    exhausted: bool,
}

/// Why a boot file is the one that is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The first of the candidates.
    First,
    /// It started on this card before.
    Learnt,
    /// Those before it were fetched and did not start.
    OthersStalled,
}

/// News that the operator of the machine may want to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// `loader` was fetched and did not start; `next` is tried.
    Stalled { loader: Name, next: Name },
    /// The last of these did not start either; they are tried again from the first on.
    Exhausted { candidates: Vec<Name> },
    /// It started where others, or itself before, did not.
    Works { loader: Name },
}

impl Card {
    /// What is known of a card since an earlier run.
    pub fn remembered(works: Name) -> Self {
        Self { works: Some(works), ..Self::default() }
    }

    /// What to offer of `candidates`, which stand in the order of preference.
    pub fn choose(&self, candidates: &[Name]) -> Option<(Name, Why)> {
        let fresh = |name: &&Name| !self.stalled.contains(name);
        if let Some(works) = self.works.as_ref().filter(|w| candidates.contains(w) && fresh(w)) {
            return Some((works.clone(), Why::Learnt));
        }
        let first = candidates.first()?;
        let next = candidates.iter().find(fresh).unwrap_or(first);
        Some((next.clone(), if next == first { Why::First } else { Why::OthersStalled }))
    }

    /// The firmware begins a boot: what it fetched before has not started.
    pub fn asks(&mut self, candidates: &[Name]) -> Option<News> {
        let (loader, fetched) = self.offer.take()?;
        if !fetched {
            return None;
        }
        if self.works.as_ref() == Some(&loader) {
            self.strikes += 1;
            if self.strikes < STRIKES {
                return None;
            }
        }
        if !self.stalled.contains(&loader) {
            self.stalled.push(loader.clone());
        }
        if candidates.iter().all(|c| self.stalled.contains(c)) {
            self.stalled.clear();
            self.works = None;
            self.strikes = 0;
            let said = std::mem::replace(&mut self.exhausted, true);
            return (!said).then(|| News::Exhausted { candidates: candidates.to_vec() });
        }
        let (next, _) = self.choose(candidates)?;
        (!self.exhausted).then_some(News::Stalled { loader, next })
    }

    /// It was promised this file.
    pub fn offered(&mut self, loader: Name) {
        self.offer = Some((loader, false));
    }

    /// It has the file. Other files, which a boot file fetches itself, are of no interest.
    pub fn fetched(&mut self, loader: &str) {
        if let Some((offered, fetched)) = &mut self.offer
            && **offered == *loader
        {
            *fetched = true;
        }
    }

    /// The boot file speaks. `Some`: it is another than the one that was known to work.
    pub fn started(&mut self) -> Option<Started> {
        let (loader, fetched) = self.offer.take()?;
        if !fetched {
            return None;
        }
        self.strikes = 0;
        self.stalled.retain(|s| *s != loader);
        let after_failures = std::mem::take(&mut self.exhausted) || !self.stalled.is_empty();
        if self.works.replace(loader.clone()).as_ref() == Some(&loader) {
            return None;
        }
        let news = after_failures.then(|| News::Works { loader: loader.clone() });
        Some(Started { loader, news })
    }

    pub fn stalled(&self) -> &[Name] {
        &self.stalled
    }
}

/// Worth remembering over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub loader: Name,
    pub news: Option<News>,
}

/// All cards, as many as fit. MAC addresses come from the network and cost nothing to make up: a flood of them pushes out
/// boots that are under way, and of what works only what fetched a file and started it can push out something else.
pub struct Book {
    cards: Recent<MacAddr, Card>,
    works: Recent<MacAddr, Name>,
    /// TFTP says who fetches by its address only.
    addresses: Recent<IpAddr, MacAddr>,
}

impl Book {
    /// Remembers at most `limit` cards.
    pub fn new(limit: usize, known: impl IntoIterator<Item = (MacAddr, Name)>) -> Self {
        let mut works = Recent::new(limit);
        for (mac, loader) in known {
            works.put(mac, loader);
        }
        Self { cards: Recent::new(limit), works, addresses: Recent::new(limit) }
    }

    /// What is known of a card; changes nothing.
    pub fn card(&self, mac: MacAddr) -> Card {
        let remembered = || self.works.peek(&mac).cloned().map(Card::remembered).unwrap_or_default();
        self.cards.peek(&mac).cloned().unwrap_or_else(remembered)
    }

    pub fn asks(&mut self, mac: MacAddr, candidates: &[Name]) -> Option<News> {
        self.cards.get(&mac)?.asks(candidates)
    }

    pub fn offered(&mut self, mac: MacAddr, address: Option<IpAddr>, loader: Name) {
        if self.cards.get(&mac).is_none() {
            let card = self.card(mac);
            self.cards.put(mac, card);
        }
        if let Some(card) = self.cards.get(&mac) {
            card.offered(loader);
        }
        if let Some(address) = address {
            self.addresses.put(address, mac);
        }
    }

    pub fn fetched(&mut self, mac: MacAddr, loader: &str) {
        if let Some(card) = self.cards.get(&mac) {
            card.fetched(loader);
        }
    }

    /// Whose address this is, as far as a boot file was offered to it.
    pub fn owner(&self, address: IpAddr) -> Option<MacAddr> {
        self.addresses.peek(&address).copied()
    }

    pub fn started(&mut self, mac: MacAddr) -> Option<Started> {
        let started = self.cards.get(&mac)?.started()?;
        self.works.put(mac, started.loader.clone());
        Some(started)
    }
}

/// A map of bounded size that forgets what was not used for longest: two halves, the older of which is dropped whole
/// whenever the younger one is full. Every operation costs the same, however large it is.
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (limit / 2).max(1) }
    }

    fn put(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Counts as used.
    fn get(&mut self, key: &K) -> Option<&mut V> {
        if let Some(value) = self.old.remove(key) {
            self.put(key.clone(), value);
        }
        self.young.get_mut(key)
    }

    fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
#[path = "learn_tests.rs"]
mod tests;
