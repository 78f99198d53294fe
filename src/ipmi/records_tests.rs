//! The walk over lists that behave as those of BMCs do: short pieces, lost reservations, records that go and come.

use super::*;

fn record(id: u8, length: u8) -> Vec<u8> {
    [&[id, 0, 0x51, 0x01, length][..], &vec![id; usize::from(length)]].concat()
}

/// A repository behind [`Walk`], with the quirks that real ones have.
struct Repository {
    records: Vec<Vec<u8>>,
    longest: u8,
    /// The reservation is cancelled once after so many reads.
    cancel_after: usize,
    reads: usize,
    reservation: u16,
}

impl Repository {
    fn new(longest: u8, cancel_after: usize) -> Self {
        let records = vec![record(1, 48), record(2, 53), record(3, 48)];
        Self { records, longest, cancel_after, reads: 0, reservation: 7 }
    }

    fn answer(&mut self, request: &Request) -> Response {
        let reply = |completion, data| Response { netfn: request.netfn | 1, cmd: request.cmd, completion, data };
        if request.cmd == 0x22 {
            self.reservation += 1;
            return reply(Completion::OK, self.reservation.to_le_bytes().to_vec());
        }
        let [r0, r1, i0, i1, offset, count] = request.data[..].try_into().unwrap();
        self.reads += 1;
        if self.reads == self.cancel_after {
            self.reservation += 1;
        }
        if u16::from_le_bytes([r0, r1]) != self.reservation {
            return reply(Completion::RESERVATION_CANCELED, vec![]);
        }
        if count > self.longest {
            return reply(Completion::CANNOT_RETURN_LENGTH, vec![]);
        }
        let index = (u16::from_le_bytes([i0, i1]) as usize).saturating_sub(1);
        let Some(record) = self.records.get(index) else { return reply(Completion::NOT_PRESENT, vec![]) };
        let next = if index + 1 == self.records.len() { LAST_RECORD } else { index as u16 + 2 };
        let mut data = next.to_le_bytes().to_vec();
        data.extend(record.iter().skip(offset as usize).take(count as usize));
        reply(Completion::OK, data)
    }
}

fn walk(repository: &mut Repository) -> Result<Vec<Vec<u8>>, Fault> {
    let mut walk = Walk::new(Source::Repository);
    let mut records = Vec::new();
    while let Some(request) = walk.request() {
        match walk.answer(&repository.answer(&request))? {
            Some(Found::Record(record)) => records.push(record),
            Some(Found::Broken(broken)) => panic!("{broken}"),
            None => {}
        }
    }
    Ok(records)
}

#[test]
fn all_records_whatever_length_the_bmc_returns() {
    for longest in [5, 16, 22, 255] {
        let mut repository = Repository::new(longest, 0);
        assert_eq!(walk(&mut repository).unwrap(), repository.records, "pieces of {longest}");
    }
}

#[test]
fn a_cancelled_reservation_starts_the_record_again() {
    for cancel_after in 1..12 {
        let mut repository = Repository::new(20, cancel_after);
        assert_eq!(walk(&mut repository).unwrap(), repository.records);
    }
}

#[test]
fn a_reservation_that_never_lasts_is_an_error() {
    let mut walk = Walk::new(Source::Repository);
    let outcome = loop {
        let request = walk.request().unwrap();
        let (completion, data) = match request.cmd {
            0x22 => (Completion::OK, vec![1, 0]),
            _ => (Completion::RESERVATION_CANCELED, vec![]),
        };
        if let Err(fault) = walk.answer(&Response { netfn: 11, cmd: request.cmd, completion, data }) {
            break fault;
        }
    };
    assert_eq!(outcome.completion(), Some(Completion::RESERVATION_CANCELED));
}

#[test]
fn empty_endless_and_nonsensical_repositories_end() {
    let mut empty = Repository::new(255, 0);
    empty.records.clear();
    assert!(walk(&mut empty).unwrap().is_empty());

    // Always another record than the one asked for, of length 0: a circle ends when it is closed, and a BMC that never
    // runs out of records when the patience does.
    for (next, limit) in [(1, 4), (u32::from(u16::MAX), BUDGET)] {
        let mut endless = Walk::new(Source::Device);
        let mut steps = 0;
        while let Some(request) = endless.request() {
            let data = match request.cmd {
                0x22 => vec![1, 0],
                _ => {
                    let record = u16::from_le_bytes([request.data[2], request.data[3]]);
                    let [low, high] = (((u32::from(record) + 1) % (next + 1)) as u16).to_le_bytes();
                    vec![low, high, 0, 0, 0x51, 0x01, 0]
                }
            };
            let ok = Response { netfn: 5, cmd: request.cmd, completion: Completion::OK, data };
            endless.answer(&ok).unwrap();
            steps += 1;
        }
        assert!(steps <= limit, "{steps}");
    }

    let mut walk = Walk::new(Source::Repository);
    walk.request();
    let short = Response { netfn: 11, cmd: 0x22, completion: Completion::OK, data: vec![1] };
    assert!(matches!(walk.answer(&short), Err(Fault::Malformed { .. })));
}

/// An event log of numbered entries, of which some go or come while it is read.
struct EventLog {
    ids: Vec<u16>,
    longest: u8,
    reads: usize,
    reserved: usize,
}

impl EventLog {
    fn new(ids: &[u16]) -> Self {
        Self { ids: ids.to_vec(), longest: 255, reads: 0, reserved: 0 }
    }

    fn answer(&mut self, request: &Request) -> Response {
        let reply = |completion, data| Response { netfn: request.netfn | 1, cmd: request.cmd, completion, data };
        if request.cmd == 0x42 {
            self.reserved += 1;
            return reply(Completion::OK, vec![9, 0]);
        }
        let [r0, _, i0, i1, offset, count] = request.data[..].try_into().unwrap();
        assert!(offset == 0 || r0 == 9, "a piece needs a reservation");
        self.reads += 1;
        let count = if count == 0xff { 16 } else { count };
        if count > self.longest {
            return reply(Completion::CANNOT_RETURN_LENGTH, vec![]);
        }
        let asked = u16::from_le_bytes([i0, i1]);
        let at = if asked == 0 { Some(0) } else { self.ids.iter().position(|id| *id == asked) };
        let Some((id, at)) = at.and_then(|at| Some((*self.ids.get(at)?, at))) else {
            return reply(Completion::NOT_PRESENT, vec![]);
        };
        let next = self.ids.get(at + 1).copied().unwrap_or(LAST_RECORD);
        let entry: Vec<u8> = [&id.to_le_bytes()[..], &[2; 14]].concat();
        let piece = entry.iter().skip(offset.into()).take(count.into());
        reply(Completion::OK, next.to_le_bytes().iter().chain(piece).copied().collect())
    }

    fn read(&mut self, mut walk: Walk, mut between: impl FnMut(&mut Self)) -> Vec<u16> {
        let mut ids = Vec::new();
        while let Some(request) = walk.request() {
            match walk.answer(&self.answer(&request)).unwrap() {
                Some(Found::Record(entry)) => ids.push(u16::from_le_bytes([entry[0], entry[1]])),
                Some(Found::Broken(broken)) => panic!("{broken}"),
                None => {}
            }
            between(self);
        }
        ids
    }
}

#[test]
fn a_log_is_read_whole_or_from_an_entry_on_without_disturbing_others() {
    // The ids have run over their end: what counts is the order of the list.
    let mut log = EventLog::new(&[0xfffd, 0xfffe, 1, 2]);
    assert_eq!(log.read(Walk::new(Source::Log), |_| {}), [0xfffd, 0xfffe, 1, 2]);
    assert_eq!((log.reads, log.reserved), (4, 0));
    assert_eq!(log.read(Walk::log_from(1), |_| {}), [1, 2]);
    assert_eq!(log.read(Walk::log_from(77), |_| {}), [0xfffd, 0xfffe, 1, 2], "all, since it is gone");
    assert!(EventLog::new(&[]).read(Walk::new(Source::Log), |_| {}).is_empty());
    log.longest = 6;
    assert_eq!(log.read(Walk::new(Source::Log), |_| {}), [0xfffd, 0xfffe, 1, 2]);
    assert_eq!(log.reserved, 2, "for 8 bytes, then for 4");
}

#[test]
fn entries_that_come_and_go_while_the_log_is_read() {
    // A full log drops its oldest entry for each new one; in the end the reader stands on one that is gone.
    let mut log = EventLog::new(&[1, 2, 3, 4]);
    let mut new = 5;
    let ids = log.read(Walk::new(Source::Log), |log| {
        if new < 9 {
            log.ids.remove(0);
            log.ids.push(new);
            new += 1;
        }
    });
    let mut sorted = ids.clone();
    sorted.dedup();
    assert_eq!(ids, sorted, "nothing twice");
    assert!(ids.starts_with(&[1]) && ids.ends_with(&[5, 6, 7, 8]), "{ids:?}");
}

#[test]
fn a_record_that_the_bmc_cannot_read_is_named_and_passed_over() {
    let mut repository = Repository::new(255, 0);
    let mut walk = Walk::new(Source::Repository);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    while let Some(request) = walk.request() {
        let mut response = repository.answer(&request);
        // Its header is readable, the rest is not.
        if let [_, _, 2, 0, offset, _] = request.data[..]
            && offset > 0
        {
            response.completion = Completion(0xff);
        }
        match walk.answer(&response).unwrap() {
            Some(Found::Record(record)) => good.push(record[0]),
            Some(Found::Broken(broken)) => bad.push(broken.to_string()),
            None => {}
        }
    }
    assert_eq!(good, [1, 3]);
    assert_eq!(bad, ["record 0x0002: cannot be read (refused without a reason)"]);
}
