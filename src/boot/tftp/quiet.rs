//! One line of the log for each cause and interval, however often it occurs: what arrives from the network must not be
//! able to fill the disk.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
pub enum Cause {
    NotOffered,
    Busy,
    Gone,
}

#[derive(Debug, Default)]
pub struct Quiet([Option<Spoken>; 3]);

#[derive(Debug, Clone, Copy)]
struct Spoken {
    when: Instant,
    kept_back: u64,
}

impl Quiet {
    /// `Some`: say it now, and that it was kept back so often since the last time.
    pub fn say(&mut self, cause: Cause, now: Instant) -> Option<u64> {
        let slot = self.0.get_mut(cause as usize)?;
        match slot {
            Some(last) if now.saturating_duration_since(last.when) < INTERVAL => {
                last.kept_back += 1;
                None
            }
            _ => {
                let kept_back = slot.map_or(0, |last| last.kept_back);
                *slot = Some(Spoken { when: now, kept_back: 0 });
                Some(kept_back)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_an_interval_for_each_cause() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        assert_eq!(quiet.say(Cause::Gone, start), Some(0));
        assert_eq!(quiet.say(Cause::Busy, start), Some(0));
        assert_eq!((0..100).find_map(|_| quiet.say(Cause::Gone, start + INTERVAL / 2)), None);
        assert_eq!(quiet.say(Cause::Gone, start + INTERVAL), Some(100));
        assert_eq!(quiet.say(Cause::Gone, start + INTERVAL * 2), Some(0));
    }
}
