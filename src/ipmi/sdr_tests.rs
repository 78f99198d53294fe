//! Records of real servers, and damaged ones.

use super::super::meaning::kind_name;
use super::super::message::tests::{parse as answer, survives_truncation};
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

fn sensors(record: &[u8]) -> Vec<Sensor> {
    match parse(record) {
        Ok(Record::Sensors(sensors)) => sensors,
        Ok(Record::Fru(_) | Record::Other) | Err(_) => Vec::new(),
    }
}

#[test]
fn values_of_a_dell() {
    let [fan] = &sensors(FAN)[..] else { panic!() };
    assert_eq!((fan.name.as_str(), fan.number, fan.unit, kind_name(fan.kind)), ("Fan2A", 0x32, "RPM", "fan"));
    assert_eq!(fan.scale.unwrap().value(0x2c), Some(5280.0));
    let [inlet] = &sensors(INLET)[..] else { panic!() };
    assert!(inlet.has_thresholds());
    assert_eq!((inlet.entity, inlet.instance, inlet.thresholds), (7, 1, 0x1b));
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
                for kind in [EVENT_ONLY, FRU_LOCATOR] {
                    let mut other = record.to_vec();
                    other[i] = value;
                    other[3] = kind;
                    let _ = parse(&other);
                }
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
    let names: Vec<_> = bays.iter().map(|s| (s.number, s.name.as_str(), s.has_thresholds())).collect();
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
fn names_in_their_codings_and_beyond_the_end() {
    let text = |bytes: &[u8]| name(&mut Fields(bytes)).unwrap();
    assert_eq!(text(&[0xc4, b'P', b'S', 0x1b, b'1']), "PS?1");
    assert_eq!(text(&[0x83, 0x29, 0xdc, 0xa6]), "IPMI");
    assert_eq!(text(&[0x42, 0x12, 0xbc]), "12-.");
    // The length says more than there is.
    assert_eq!(text(&[0xdf, b'A']), "A");
}

/// Of a Quanta D51 and a Dell R630.
#[test]
fn sensors_without_a_reading_and_devices_with_an_inventory() {
    let record = b"\x69\0\x51\x03\x18\x20\0\x87\x2b\x01\x0c\x6f\x01\0\0\0\xccMemory Error";
    let [sensor] = &sensors(record)[..] else { panic!() };
    assert_eq!((sensor.name.as_str(), sensor.number, sensor.kind), ("Memory Error", 0x87, 0x0c));
    assert!(sensor.event_only && sensor.reading_type == 0x6f);
    let supply = b"\x07\0\x51\x11\x0e\x20\x01\x80\0\0\x09\x02\x0a\x01\0\xc3PS1";
    assert_eq!(parse(supply), Ok(Record::Fru(FruDevice { id: 1, name: "PS1".into() })));
    // A memory chip on a private bus is no inventory that can be asked for.
    let chip = b"\x05\0\x51\x11\x0f\0\xb0\0\0\0\0\0\x03\x01\0\xc4CPU1";
    assert_eq!(parse(chip), Ok(Record::Other));
    assert!(parse(&FAN[..30]).is_err() && parse(&[]).is_err());
}

#[test]
fn repository_info() {
    let data = [0x51, 7, 0, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 2];
    let info = answer(&GetRepositoryInfo, &data).unwrap();
    assert_eq!(info, RepositoryInfo { records: 7, added: 0x0403_0201, erased: 0x0807_0605 });
    survives_truncation(&GetRepositoryInfo, &data);
}
