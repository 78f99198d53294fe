//! Sessions that are open and not in use, by the time at which something has to be done about each: a keep-alive where the
//! next look is known to come, a farewell otherwise.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::time::Instant;

use super::lock;

#[derive(Default)]
pub struct Kept {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    due: BTreeSet<(Instant, SocketAddr)>,
    /// The task that takes them as they fall due is running.
    watched: bool,
}

/// What became of a session that was to be kept.
pub enum Put {
    /// There are too many.
    Full,
    Watched,
    /// Nobody watches yet: the caller starts the task.
    Unwatched,
}

pub enum Next {
    At(Instant),
    Due(SocketAddr),
    /// None is left; the task ends.
    End,
}

impl Kept {
    pub fn put(&self, at: Instant, bmc: SocketAddr, max: usize) -> Put {
        let mut inner = lock(&self.inner);
        if inner.due.len() >= max {
            return Put::Full;
        }
        inner.due.insert((at, bmc));
        match std::mem::replace(&mut inner.watched, true) {
            true => Put::Watched,
            false => Put::Unwatched,
        }
    }

    /// It is in use.
    pub fn take(&self, at: Instant, bmc: SocketAddr) {
        lock(&self.inner).due.remove(&(at, bmc));
    }

    pub fn next(&self, now: Instant) -> Next {
        let mut inner = lock(&self.inner);
        match inner.due.first() {
            Some(&(at, _)) if at > now => Next::At(at),
            Some(&first) => {
                inner.due.remove(&first);
                Next::Due(first.1)
            }
            None => {
                inner.watched = false;
                Next::End
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_that_is_due_comes_first_and_one_in_use_not_at_all() {
        let (kept, now) = (Kept::default(), Instant::now());
        let bmc = |n: u8| SocketAddr::from(([10, 0, 0, n], 623));
        let at = |n: u64| now + Duration::from_secs(n);
        assert!(matches!(kept.put(at(2), bmc(2), 3), Put::Unwatched));
        assert!(matches!(kept.put(at(1), bmc(1), 3), Put::Watched));
        assert!(matches!(kept.put(at(3), bmc(3), 3), Put::Watched));
        assert!(matches!(kept.put(at(4), bmc(4), 3), Put::Full));
        kept.take(at(2), bmc(2));
        assert!(matches!(kept.next(now), Next::At(first) if first == at(1)));
        assert!(matches!(kept.next(at(3)), Next::Due(address) if address == bmc(1)));
        assert!(matches!(kept.next(at(3)), Next::Due(address) if address == bmc(3)));
        assert!(matches!(kept.next(at(3)), Next::End));
        assert!(matches!(kept.put(at(5), bmc(5), 3), Put::Unwatched));
    }
}
