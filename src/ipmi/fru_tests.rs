//! Inventories that are good, damaged in one area, without an end, and nonsense.

use super::super::message::tests::{parse as answer, survives_truncation};
use super::*;

/// An area of these bytes behind version and length, padded and with its checksum.
fn area(bytes: &[u8]) -> Vec<u8> {
    let mut area = [&[1, 0][..], bytes].concat();
    area.resize((area.len() + 1).next_multiple_of(8) - 1, 0);
    area[1] = ((area.len() + 1) / 8) as u8;
    let sum = area.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    area.push(sum.wrapping_neg());
    area
}

fn text(coding: u8, bytes: &[u8]) -> Vec<u8> {
    [&[coding << 6 | bytes.len() as u8], bytes].concat()
}

fn record(kind: u8, last: bool, data: &[u8]) -> Vec<u8> {
    let sum = data.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg();
    let mut header = vec![kind, u8::from(last) << 7 | 2, data.len() as u8, sum];
    header.push(header.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg());
    [&header, data].concat()
}

/// Chassis, board and product areas and two records.
fn storage() -> Vec<u8> {
    let chassis = area(&[&[0x17][..], &text(2, &[0x29, 0xdc, 0xa6]), &text(3, b"7XK2M13"), &[0xc1]].concat());
    // 2026-11-21 00:00 is 16,246,080 minutes after 1996.
    let minutes = 16_246_080u32.to_le_bytes();
    let board = area(
        &[
            &[25][..],
            &minutes[..3],
            &text(3, b"DELL"),
            &text(3, b"PowerEdge R630  "),
            &text(1, &[0x12, 0x3b]),
            &text(0, &[0xde, 0xad]),
            &text(3, b""),
            &text(3, b"rev A\x1b"),
            &[0xc1],
        ]
        .concat(),
    );
    // In Japanese: 16 bits to the character.
    let product = area(&[&[10][..], &text(3, &[0xe5, 0x65, 0x2c, 0x67]), &[0xc1]].concat());
    let records = [record(0, false, &[0xee, 0x02, 0, 0]), record(3, true, b"\x01https://10.0.0.7")].concat();
    let mut offsets = vec![1, 0, 1];
    offsets.push(offsets[2] + (chassis.len() / 8) as u8);
    offsets.push(offsets[3] + (board.len() / 8) as u8);
    offsets.push(offsets[4] + (product.len() / 8) as u8);
    offsets.push(0);
    offsets.push(offsets.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg());
    [offsets, chassis, board, product, records, vec![0xff; 50]].concat()
}

fn lines(inventory: &Inventory) -> Vec<String> {
    inventory.fields.iter().map(|f| format!("{}.{}: {}", f.area.name(), f.name, f.value)).collect()
}

const ALL: [&str; 11] = [
    "chassis.type: rack mount",
    "chassis.part number: IPMI",
    "chassis.serial: 7XK2M13",
    "board.made: 2026-11-21 00:00",
    "board.manufacturer: DELL",
    "board.product: PowerEdge R630",
    "board.serial: 123-",
    "board.part number: de ad",
    "board.custom 1: rev A?",
    "product.manufacturer: 日本",
    "record.power supply: 750 W",
];

#[test]
fn every_coding_and_every_area() {
    let inventory = parse(&storage());
    let mut expected: Vec<String> = ALL.map(str::to_owned).to_vec();
    expected.push("record.management address: https://10.0.0.7".to_owned());
    assert_eq!(lines(&inventory), expected);
    assert!(inventory.broken.is_empty());
    assert_eq!(inventory.value(Part::Chassis, "serial"), Some("7XK2M13"));
}

#[test]
fn only_what_has_a_meaning_is_asked_for() {
    let storage = storage();
    let (mut read, mut rounds) = (0, 0);
    loop {
        let wanted = needed(&storage[..read]);
        if wanted <= read {
            break;
        }
        (read, rounds) = (wanted, rounds + 1);
    }
    assert_eq!(read, storage.len() - 50);
    assert!(rounds < 12, "{rounds}");
    assert_eq!(parse(&storage[..read]), parse(&storage));
}

#[test]
fn a_damaged_area_is_named_and_the_others_are_read() {
    let mut damaged = storage();
    damaged[8 + 5] ^= 1;
    let inventory = parse(&damaged);
    assert_eq!(inventory.broken, ["the chassis area has a wrong checksum"]);
    assert_eq!(inventory.value(Part::Board, "manufacturer"), Some("DELL"));

    let mut damaged = storage();
    let at = damaged.len() - 51;
    damaged[at] ^= 1;
    assert_eq!(parse(&damaged).broken, ["record 2 has a wrong checksum"]);

    let short = &storage()[..40];
    assert_eq!(parse(short).broken[0], "the board area lies beyond the end of the storage");

    let mut header = storage();
    header[7] ^= 1;
    assert_eq!(parse(&header).broken, ["the header's checksum or format is wrong"]);
    for empty in [[0; 64], [0xff; 64]] {
        assert_eq!(parse(&empty), Inventory::default());
    }
    let endless = area(&[&[0x17][..], &text(3, b"part")].concat());
    let endless = [&[1, 0, 1, 0, 0, 0, 0, 0xfe][..], &endless].concat();
    assert_eq!(lines(&parse(&endless)), ["chassis.type: rack mount", "chassis.part number: part"]);
}

#[test]
fn nothing_makes_it_panic() {
    let storage = storage();
    for end in 0..storage.len() {
        parse(&storage[..end]);
        needed(&storage[..end]);
    }
    for i in 0..storage.len() {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xc1, 0xff] {
            let mut bad = storage.clone();
            bad[i] = value;
            parse(&bad);
            needed(&bad);
        }
    }
}

#[test]
fn the_commands() {
    assert_eq!(GetArea(1).request(), Request::new(0x0a, 0x10, [1]));
    assert_eq!(answer(&GetArea(1), &[0, 8, 1]), Some(Area { bytes: 2048, by_words: true }));
    let read = Read { device: 1, offset: 0x120, count: 16 };
    assert_eq!(read.request().data, [1, 0x20, 0x01, 16]);
    assert_eq!(answer(&read, &[2, 7, 8]), Some(vec![7, 8]));
    survives_truncation(&read, &[2, 7, 8]);
}
