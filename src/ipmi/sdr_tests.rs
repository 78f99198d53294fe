//! Records of real servers, damaged records, and the walk over repositories that behave as BMCs do.

use super::super::message::tests::{parse, survives_truncation};
use super::*;

/// A fan and the inlet temperature of a Dell R630, without the id of the next record (from the tests of ipmi-rs-core).
const FAN: &[u8] = &[
    0x0d, 0x00, 0x51, 0x01, 0x30, 0x20, 0x00, 0x32, 0x07, 0x01, 0x7f, 0xd4, 0x04, 0x01, 0x05, 0x30, 0x05, 0x00, 0x03,
    0x00, 0x00, 0x12, 0x00, 0x00, 0x78, 0x02, 0x00, 0x02, 0x30, 0x00, 0x07, 0x54, 0xc5, 0x8b, 0xff, 0x00, 0xff, 0xff,
    0xff, 0x00, 0x05, 0x07, 0x01, 0x01, 0x00, 0x00, 0x00, 0xc5, 0x46, 0x61, 0x6e, 0x32, 0x41,
];
const INLET: &[u8] = &[
    0x12, 0x00, 0x51, 0x01, 0x35, 0x20, 0x00, 0x04, 0x07, 0x01, 0x7f, 0x68, 0x01, 0x01, 0x85, 0x32, 0x85, 0x32, 0x1b,
    0x09, 0x00, 0x01, 0x00, 0x00, 0x01, 0x02, 0x80, 0xc2, 0x30, 0x00, 0x07, 0x97, 0xc5, 0x8b, 0xff, 0x00, 0xff, 0xaf,
    0xaa, 0x00, 0x79, 0x83, 0x01, 0x01, 0x00, 0x00, 0x00, 0xca, 0x49, 0x6e, 0x6c, 0x65, 0x74, 0x20, 0x54, 0x65, 0x6d,
    0x70,
];

#[test]
fn values_of_a_dell() {
    let [fan] = &sensors(FAN)[..] else { panic!() };
    assert_eq!((fan.name.as_str(), fan.number, fan.unit, kind_name(fan.kind)), ("Fan2A", 0x32, "RPM", "fan"));
    assert_eq!(fan.scale.unwrap().value(0x2c), Some(5280.0));
    let [inlet] = &sensors(INLET)[..] else { panic!() };
    assert!(inlet.threshold);
    assert_eq!((inlet.name.as_str(), inlet.scale.unwrap().value(0x99)), ("Inlet Temp", Some(25.0)));
}

#[test]
fn no_prefix_and_no_byte_of_a_record_makes_it_panic() {
    for record in [FAN, INLET] {
        for end in 0..record.len() {
            sensors(&record[..end]);
        }
        for i in 0..record.len() {
            for value in [0x00, 0x30, 0x7f, 0x80, 0xff] {
                let mut bad = record.to_vec();
                bad[i] = value;
                for sensor in sensors(&bad) {
                    sensor.scale.and_then(|s| s.value(0xff));
                }
                bad[3] = COMPACT;
                sensors(&bad);
            }
        }
    }
}

#[test]
fn a_compact_record_stands_for_several() {
    // Three drive bays from number 0x40, named with letters from C on.
    let mut record = vec![0x20, 0x00, 0x51, 0x02, 0x1e, 0x20, 0x00, 0x40, 4, 1, 0x67, 0x40, 0x0d, 0x6f];
    record.extend([0; 6]);
    record.extend([0xc0, 0, 0, 0x13, 0x02, 0, 0, 0, 0, 0, 0, 0xc3, b'B', b'a', b'y']);
    let bays = sensors(&record);
    let names: Vec<_> = bays.iter().map(|s| (s.number, s.name.as_str(), s.threshold)).collect();
    assert_eq!(names, [(0x40, "BayC", false), (0x41, "BayD", false), (0x42, "BayE", false)]);
}

#[test]
fn negative_factors_exponents_and_curves() {
    assert_eq!((ten_bits(0xff, 0xc0), ten_bits(0x00, 0x80), ten_bits(0xff, 0x40)), (-1, -512, 511));
    assert_eq!((four_bits(0xf), four_bits(0x8), four_bits(0x17)), (-1, -8, 7));
    let scale = Scale { format: Format::Unsigned, linearization: 0, m: 7, b: 0, b_exponent: 0, r_exponent: -2 };
    assert_eq!(scale.value(172), Some(12.04));
    assert_eq!(Scale { format: Format::TwosComplement, ..scale }.value(0xff), Some(-0.07));
    assert_eq!(Scale { format: Format::OnesComplement, ..scale }.value(0xfe), Some(-0.07));
    assert_eq!(Scale { linearization: 8, r_exponent: 0, ..scale }.value(2), Some(196.0));
    assert_eq!(Scale { linearization: 7, ..scale }.value(0), None);
    assert_eq!(Scale { linearization: 0x70, ..scale }.value(1), None);
}

#[test]
fn names_in_their_four_codings() {
    let text = |bytes: &[u8]| name(&mut Fields(bytes)).unwrap();
    assert_eq!(text(&[0xc4, b'P', b'S', 0x1b, b'1']), "PS?1");
    // The example of section 43.16: "IPMI" packed into 29 DC A6.
    assert_eq!(text(&[0x83, 0x29, 0xdc, 0xa6]), "IPMI");
    assert_eq!(text(&[0x42, 0x12, 0xbc]), "12-.");
    // The length says more than there is.
    assert_eq!(text(&[0xdf, b'A']), "A");
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
        let mut records = vec![FAN.to_vec(), INLET.to_vec(), FAN.to_vec()];
        for (i, record) in records.iter_mut().enumerate() {
            record[0] = i as u8 + 1;
        }
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
        records.extend(walk.answer(&repository.answer(&request))?);
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

    let mut endless = Walk::new(Source::Device);
    let mut steps = 0;
    while let Some(request) = endless.request() {
        let data = match request.cmd {
            0x22 => vec![1, 0],
            // Always another record than the one asked for, of length 0.
            _ => vec![request.data[2] ^ 1, 0, 0, 0, 0x51, 0x01, 0],
        };
        let ok = Response { netfn: 5, cmd: request.cmd, completion: Completion::OK, data };
        endless.answer(&ok).unwrap();
        steps += 1;
    }
    assert_eq!(steps, BUDGET);

    let mut walk = Walk::new(Source::Repository);
    walk.request();
    let short = Response { netfn: 11, cmd: 0x22, completion: Completion::OK, data: vec![1] };
    assert!(matches!(walk.answer(&short), Err(Fault::Malformed { .. })));
}

#[test]
fn repository_info() {
    let data = [0x51, 7, 0, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 2];
    let info = parse(&GetRepositoryInfo, &data).unwrap();
    assert_eq!(info, RepositoryInfo { records: 7, added: 0x0403_0201, erased: 0x0807_0605 });
    survives_truncation(&GetRepositoryInfo, &data);
}
