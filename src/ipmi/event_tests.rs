//! Events as sentences: each kind of wording once, and none that makes the reader panic. Whole logs of servers are read in
//! `tests/it/bmc_data.rs`.

use super::super::meaning::{kind_name, states};
use super::super::sdr::{Record, parse};
use super::*;

/// The inlet temperature of a Dell R630.
const INLET: &[u8] = &[
    0x12, 0x00, 0x51, 0x01, 0x35, 0x20, 0x00, 0x04, 0x07, 0x01, 0x7f, 0x68, 0x01, 0x01, 0x85, 0x32, 0x85, 0x32, 0x1b,
    0x09, 0x00, 0x01, 0x00, 0x00, 0x01, 0x02, 0x80, 0xc2, 0x30, 0x00, 0x07, 0x97, 0xc5, 0x8b, 0xff, 0x00, 0xff, 0xaf,
    0xaa, 0x00, 0x79, 0x83, 0x01, 0x01, 0x00, 0x00, 0x00, 0xca, 0x49, 0x6e, 0x6c, 0x65, 0x74, 0x20, 0x54, 0x65, 0x6d,
    0x70,
];

fn event(kind: u8, reading_type: u8, data: [u8; 3]) -> Event {
    Event { generator: 0x20, lun: 0, kind, number: 4, reading_type, asserted: true, data }
}

#[test]
fn limits_with_the_values_that_are_there() {
    let Ok(Record::Sensors(sensors)) = parse(INLET) else { panic!() };
    let inlet = sensors.first();
    let hot = event(1, THRESHOLD, [0x59, 0xb0, 0xaf]);
    assert!(hot.is_of(inlet.unwrap()));
    assert_eq!(
        hot.sentence("Inlet Temp", inlet),
        "Inlet Temp rose above its upper critical limit: 48 °C, the limit is 47 °C"
    );
    assert_eq!(hot.level(), Level::Critical);
    let over = Event { asserted: false, ..hot };
    assert_eq!(
        over.sentence("Inlet Temp", inlet),
        "Inlet Temp is no longer beyond its upper critical limit: 48 °C, the limit is 47 °C"
    );
    assert_eq!(over.level(), Level::Ok);
    assert_eq!(event(4, THRESHOLD, [0x02, 0, 0]).sentence("Fan1", None), "Fan1 fell below its lower critical limit");
    assert_eq!(hot.sentence("Inlet Temp", None), "Inlet Temp rose above its upper critical limit");
}

#[test]
fn states_of_all_sensors_of_one_sensor_type_and_of_the_maker() {
    let says = |kind, reading_type, data| event(kind, reading_type, data).sentence("S", None);
    assert_eq!(says(0x08, 0x6f, [0x03, 0xff, 0xff]), "S: power input lost");
    assert_eq!(says(0x08, 0x0b, [0x01, 0, 0]), "S: redundancy lost");
    assert_eq!(says(0x0c, 0x6f, [0x31, 0xff, 0x07]), "S: uncorrectable memory error (module 7)");
    assert_eq!(says(0x0c, 0x6f, [0xa1, 0x12, 0x34]), "S: uncorrectable memory error (maker's code 12 34)");
    assert_eq!(says(0x0f, 0x6f, [0xc0, 0x02, 0xff]), "S: firmware error in the power-on self-test (no usable memory)");
    assert_eq!(says(0xc1, 0x72, [0xa3, 0x01, 0xff]), "S: event type 0x72 number 3 (maker's code 01)");
    let gone = Event { asserted: false, ..event(0x08, 0x6f, [0x03, 0, 0]) };
    assert_eq!(gone.sentence("PS1 Status", None), "PS1 Status: power input lost, which has ended");
    assert_eq!(event(0x07, 0x6f, [0, 0, 0]).level(), Level::Fatal);
}

#[test]
fn a_reading_says_the_same_as_the_event_of_its_state() {
    assert_eq!(states(0x08, 0x6f, 0b1001), (Level::Critical, vec!["present".into(), "power input lost".into()]));
    assert_eq!(states(0x25, 0x6f, 1), (Level::Ok, vec!["present".into()]));
    assert_eq!(states(0xc0, 0x70, 0b10), (Level::Ok, vec!["state 1".into()]));
    assert_eq!(states(0x0d, 0x6f, 0), (Level::Ok, vec![]));
}

#[test]
fn every_event_is_a_sentence() {
    for kind in 0..=255 {
        assert!(!kind_name(kind).is_empty());
        for reading_type in 0..=0x7f {
            for offset in 0..=15 {
                for usage in [0x00, 0x50, 0xa0, 0xf0] {
                    let event = event(kind, reading_type, [usage | offset, 0xff, 0x01]);
                    let text = event.sentence("S", None);
                    assert!(text.starts_with('S') && !text.contains("()") && !text.ends_with(' '), "{text}");
                    assert!(event.asserted || event.level() == Level::Ok);
                }
            }
        }
    }
}
