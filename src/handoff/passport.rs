//! The signed passport: `{"passport": …, "key": HEX, "signature": HEX}`. The signature is Ed25519 over the compact JSON of
//! `passport` with the keys of every object in ascending order, so that the file may be re-indented and still verifies.
//!
//! Numbers with a fraction are cut to what every reader of JSON reads back as the same number ([`settle`]). A file in which a key
//! comes twice is refused: readers differ in which of the two they take.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};

use crate::error::{Error, Result};
use crate::image::PublicKey;
use crate::image::sign::{SIGNATURE_BYTES, SigningKey};
use crate::lifecycle::passport::{Facts, Passport, VERSION};
use crate::lifecycle::{Machine, Millis};
use crate::link::Problem;

/// A passport of a server with 16 NICs and 36 disks has 200 KB.
pub const MAX_BYTES: usize = 8 << 20;

pub fn issue(key: &SigningKey, machine: &Machine, facts: Facts, now: Millis) -> Result<Value, Problem> {
    let facts = Facts { key_id: Some(key.public().id().to_string()), ..facts };
    let passport = Passport::of(machine, facts, now)?;
    // serde_json's own map is sorted by key: going through `Value` makes the bytes canonical.
    let mut body = serde_json::to_value(&passport).map_err(|e| Problem {
        code: "passport.encode".into(),
        title: format!("the passport cannot be written as JSON: {e}"),
        hint: None,
        causes: Vec::new(),
    })?;
    settle(&mut body);
    let signature = key.sign(body.to_string().as_bytes());
    Ok(json!({ "passport": body, "key": key.public().to_string(), "signature": hex::encode(signature) }))
}

/// Cuts every fraction to 13 significant digits, and to zero what is below a thousand-millionth: such a number is a whole number
/// below 2^53 times a power of ten within 10^±22, which any reader gets right with one multiplication. serde_json reads longer
/// ones wrong by one unit in the last place now and then, and the signature would not fit any more.
fn settle(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let Some(fraction) = number.as_f64().filter(|_| number.is_f64()) else { return };
            let short = if fraction.abs() < 1e-9 { Ok(0.0) } else { format!("{fraction:.12e}").parse() };
            *value = short.ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number);
        }
        Value::Array(list) => list.iter_mut().for_each(settle),
        Value::Object(map) => map.values_mut().for_each(settle),
        _ => {}
    }
}

/// A passport as a file, its form checked and nothing else yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Signed {
    body: Value,
    key: PublicKey,
    signature: [u8; SIGNATURE_BYTES],
}

impl Signed {
    pub fn parse(text: &str) -> Result<Self> {
        let garbage = |what: String| {
            Error::input("passport.garbage", format!("this is no passport: {what}"))
                .hint("`rackline passport show NAME --json` writes one")
        };
        if text.len() > MAX_BYTES {
            return Err(garbage(format!("it has more than {} MiB", MAX_BYTES >> 20)));
        }
        let Strict(value) = serde_json::from_str(text).map_err(|e| garbage(e.to_string()))?;
        Self::of(value).map_err(garbage)
    }

    /// As the appliance keeps it. An error is the rest of the sentence "this is no passport".
    pub fn of(value: Value) -> std::result::Result<Self, String> {
        let Value::Object(mut file) = value else { return Err("it is not a JSON object".into()) };
        let mut take = |field: &str| file.remove(field).ok_or_else(|| format!("it has no {field:?}"));
        let (body, key, signature) = (take("passport")?, take("key")?, take("signature")?);
        if let Some(other) = file.keys().next() {
            return Err(format!("nobody signed {:?}", other.chars().take(40).collect::<String>()));
        }
        let key = key.as_str().and_then(|hex| hex.parse().ok()).ok_or("its key is not 64 hex digits")?;
        let mut bytes = [0; SIGNATURE_BYTES];
        let hex = signature.as_str().and_then(|hex| hex::decode_to_slice(hex, &mut bytes).ok());
        hex.ok_or("its signature is not 128 hex digits")?;
        Ok(Self { body, key, signature: bytes })
    }

    /// Whether one of `trusted` signed exactly this.
    pub fn verify(&self, trusted: &[PublicKey]) -> Result<()> {
        let message = self.body.to_string();
        let whole = self.key.signed(message.as_bytes(), &self.signature);
        match (whole, trusted.contains(&self.key)) {
            (true, true) => Ok(()),
            (true, false) => Err(Error::refused(
                "passport.key",
                format!("the passport is unchanged, but was signed by key {}, which is none of those trusted", self.key),
            )
            .hint("anybody can sign with a key of their own: ask the site for its key, `rackline passport key` prints it")),
            (false, _) => Err(Error::refused(
                "passport.changed",
                "the signature does not fit: the passport was changed after it was signed, by one character or more; which \
                 field it was cannot be told",
            )
            .hint("get it again from the appliance: `rackline passport show NAME --json`")),
        }
    }

    /// What it says; nothing of it is proven before [`Signed::verify`].
    pub fn read(&self) -> Result<Passport> {
        let version = self.body.get("version").and_then(Value::as_u64).unwrap_or_default();
        if version > u64::from(VERSION) {
            return Err(Error::input("passport.newer", format!("the passport has version {version}"))
                .hint(format!("this release reads up to version {VERSION}: use the release that it was made with")));
        }
        Passport::deserialize(&self.body)
            .map_err(|e| Error::input("passport.garbage", "this passport does not say what a passport says").because(e))
    }

    pub fn key(&self) -> PublicKey {
        self.key
    }

    pub fn signature(&self) -> String {
        hex::encode(self.signature)
    }
}

/// Any JSON in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if let Some(twice) = map.insert(key.clone(), value).map(|_| key) {
                return Err(de::Error::custom(format!("{twice:?} stands in it twice")));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::Set;
    use crate::lifecycle::passport::Energy;
    use crate::lifecycle::{Erased, Order, StageTime, State};
    use crate::link::{Check, Deployed, ErasedDisk, Erasure, Measured, Partition, Twins};
    use crate::machine::{
        Cpu, Digest, Dimm, Disk, Inventory, MacAddr, MachineId, Nic, Place, Role, Serial, TargetRule,
    };

    /// Two sockets, 16 DIMMs, 14 disks, 4 ports: what has to fit on the page.
    pub fn large(role: Role) -> Machine {
        let id = MachineId(uuid::Uuid::from_u128(0x5eed));
        let mut machine = Machine::new(id, "r12-u30".into(), 1_790_000_000_000, State::Verifying);
        machine.place = Some(Place { rack: "r12".into(), unit: 30 });
        machine.serial = Serial::parse("CN7475164R0123");
        machine.order = Some(Order {
            role: role.into(),
            image_name: format!("{role} 2026.11.2"),
            manifest: Digest([7; 32]),
            hostname: "hv-0412.site.example".parse().unwrap(),
            target: TargetRule::SmallestSsd,
            ssh_keys: vec![],
            compare_with_dd: false,
            setup: Default::default(),
        });
        machine.inventory = Some(std::sync::Arc::new(hardware()));
        machine.target = Some("nvme0n1".into());
        machine.deployed = Some(Deployed {
            manifest: Digest([7; 32]),
            disk: "nvme0n1".into(),
            serial: Serial::parse("S4YNNE0N801234"),
            partitions: vec![
                Partition { number: 1, name: "esp".into(), start_bytes: 1 << 20, size_bytes: 64 << 20 },
                Partition { number: 2, name: "root".into(), start_bytes: 65 << 20, size_bytes: 2 << 30 },
                Partition { number: 3, name: "rackline-seed".into(), start_bytes: 447 << 30, size_bytes: 64 << 20 },
            ],
            written_bytes: 792 << 20,
            fetched_bytes: 310 << 20,
            peer_bytes: 300 << 20,
            appliance_bytes: 10 << 20,
            resumed_bytes: 0,
            reused_bytes: 0,
            write_seconds: 0.1 + 0.2,
            read_back_bytes: 792 << 20,
            read_back_seconds: 0.41,
            dd_bytes_per_second: None,
        });
        machine.erased = Some(Erased {
            at: 1_789_990_000_000,
            disks: vec![ErasedDisk {
                name: "nvme0n1".into(),
                model: Some("SAMSUNG MZQL2480".into()),
                serial: Serial::parse("S4YNNE0N801234"),
                size_bytes: 480 << 30,
                how: Erasure::SecureDiscard,
                read_back_bytes: 4 << 20,
                seconds: 3.25,
            }],
        });
        let roles = role.into();
        machine.checks = Set::built_in()
            .of(&roles)
            .map(|declared| Check {
                id: declared.id.clone(),
                passed: true,
                expected: "as ordered".into(),
                found: format!("{} as ordered, measured 6.1.0-41", declared.id),
                seconds: 1.0 / 3.0,
                ..Check::default()
            })
            .collect();
        let measured =
            [("memory.copy", 11_234.567, "MB/s"), ("disk.nvme0n1.read", 3_112.0, "MB/s"), ("boot", 41.7, "s")];
        machine.measured = measured.map(|(name, value, unit)| Measured::new(name, value, unit)).into();
        machine.measured[0].twins = Some(Twins { count: 46, median: 11_100.0, mad: 80.0 });
        machine.times = ["expected", "seen", "commissioning", "deploying"]
            .map(|s| StageTime { state: s.into(), millis: 61_234 })
            .into();
        machine
    }

    fn hardware() -> Inventory {
        let mut inventory = Inventory { kernel: "6.1.0".into(), ..Inventory::default() };
        inventory.system.manufacturer = Some("Dell Inc.".into());
        inventory.system.product = Some("PowerEdge R740xd".into());
        inventory.system.serial = Serial::parse("CN7475164R0123");
        inventory.system.bios_version = Some("2.19.1".into());
        inventory.cpus = ["CPU1", "CPU2"]
            .map(|socket| Cpu {
                socket: socket.into(),
                model: "Intel(R) Xeon(R) Gold 6230R CPU @ 2.10GHz".into(),
                cores: 26,
                threads: 52,
                microcode: Some("0x5003604".into()),
                ..Cpu::default()
            })
            .into();
        inventory.memory.usable_bytes = 503 << 30;
        inventory.memory.slots = 24;
        inventory.memory.dimms = (0..16u8)
            .map(|i| Dimm {
                slot: format!("{}{}", char::from(b'A' + i / 8), i % 8 + 1),
                size_bytes: 32 << 30,
                speed_mts: Some(2933),
                manufacturer: Some("Samsung".into()),
                part: Some("M393A4K40DB3-CWE".into()),
                serial: Serial::parse(&format!("03B1D4{i:02}")),
                ..Dimm::default()
            })
            .collect();
        let disk = |name: String, model: &str, serial: String, size: u64, rotational| Disk {
            name,
            model: Some(model.into()),
            serial: Serial::parse(&serial),
            size_bytes: size,
            rotational,
            transport: if rotational { "sas" } else { "nvme" }.into(),
            firmware: Some("GDC5602Q".into()),
            ..Disk::default()
        };
        inventory.disks = (0..2)
            .map(|i| {
                disk(
                    format!("nvme{i}n1"),
                    "SAMSUNG MZQL2480",
                    format!("S4YNNE0N80123{}", 4 + i),
                    480_103_981_056,
                    false,
                )
            })
            .chain((0..12u8).map(|i| {
                disk(
                    format!("sd{}", char::from(b'a' + i)),
                    "ST16000NM002G",
                    format!("ZL2A{i:04}"),
                    16_000_900_661_248,
                    true,
                )
            }))
            .collect();
        inventory.nics = (0..4u8)
            .map(|i| Nic {
                name: format!("eno{}", i + 1),
                mac: MacAddr([0xe4, 0x3d, 0x1a, 0, 0, i]),
                driver: Some("bnxt_en".into()),
                pci: Some(format!("0000:18:00.{i}")),
                firmware: Some("22.31.13.70".into()),
                link: i < 2,
                speed_mbps: (i < 2).then_some(25_000),
                boot: i == 0,
                max_mbps: Some(25_000),
                queues: Some(26),
                max_queues: Some(74),
                numa: Some(0),
                neighbour: None,
            })
            .collect();
        inventory
    }

    pub fn facts() -> Facts {
        Facts {
            energy: Some(Energy { watts: 220.0, sensors: vec!["Pwr Consumption".into()], at: 1_790_000_000_000 }),
            key_id: None,
        }
    }

    fn signed() -> (SigningKey, String) {
        let key = SigningKey::generate().unwrap();
        let file = issue(&key, &large(Role::Kvm), facts(), 1_790_000_100_000).unwrap();
        (key, serde_json::to_string_pretty(&file).unwrap())
    }

    fn verdict(text: &str, trusted: &[PublicKey]) -> std::result::Result<(), String> {
        Signed::parse(text).and_then(|signed| signed.verify(trusted)).map_err(|e| e.code().to_owned())
    }

    #[test]
    fn whole_changed_foreign_and_garbage_are_told_apart() {
        let (key, text) = signed();
        let other = SigningKey::generate().unwrap();
        assert_eq!(verdict(&text, &[other.public(), key.public()]), Ok(()));
        let compact = serde_json::from_str::<Value>(&text).unwrap().to_string();
        assert_eq!(verdict(&compact, &[key.public()]), Ok(()), "the file may be re-indented");
        assert_eq!(verdict(&text, &[other.public()]), Err("passport.key".into()));
        assert_eq!(verdict(&text, &[]), Err("passport.key".into()));
        let changed = text.replace("2.19.1", "2.19.2");
        assert_ne!(changed, text);
        assert_eq!(verdict(&changed, &[key.public()]), Err("passport.changed".into()));
        // Signed again by somebody else after it was changed.
        let forged = issue(&other, &large(Role::Ovs), facts(), 0).unwrap().to_string();
        assert_eq!(verdict(&forged, &[key.public()]), Err("passport.key".into()));
        // The site's key named over another one's signature.
        let claimed = forged.replace(&other.public().to_string(), &key.public().to_string());
        assert_eq!(verdict(&claimed, &[key.public()]), Err("passport.changed".into()));
        for garbage in
            ["", "[]", "null", "{}", "passport", "{\"passport\":1,\"key\":\"00\",\"signature\":\"\"}", &text[..900]]
        {
            assert_eq!(verdict(garbage, &[key.public()]), Err("passport.garbage".into()), "{garbage:.20}");
        }
    }

    #[test]
    fn what_is_added_beside_the_signed_part_is_refused() {
        let (key, text) = signed();
        let twice = text.replacen("\"hostname\":", "\"hostname\": \"evil\", \"hostname\":", 1);
        assert_eq!(verdict(&twice, &[key.public()]), Err("passport.garbage".into()));
        let beside = text.replacen('{', "{\"note\": \"all well\",", 1);
        assert_eq!(verdict(&beside, &[key.public()]), Err("passport.garbage".into()));
    }

    #[test]
    fn it_says_what_the_host_is() {
        let (key, text) = signed();
        let passport = Signed::parse(&text).unwrap().read().unwrap();
        assert_eq!((passport.version, passport.key_id), (2, Some(key.public().id().to_string())));
        assert_eq!(passport.versions.len(), 1 + 4 + 14);
        assert_eq!(passport.energy.unwrap().watts, 220.0);
        assert_eq!(passport.erased.unwrap().disks[0].how, Erasure::SecureDiscard);
        let mut newer: Value = serde_json::from_str(&text).unwrap();
        newer["passport"]["version"] = json!(3);
        assert_eq!(Signed::parse(&newer.to_string()).unwrap().read().unwrap_err().code(), "passport.newer");
    }

    /// As release 0.1 wrote it, without what version 2 added.
    #[test]
    fn a_passport_of_version_1_is_read_and_verified() {
        let key = SigningKey::generate().unwrap();
        let mut file = issue(&key, &large(Role::Docker), Facts::default(), 1).unwrap();
        let body = file["passport"].as_object_mut().unwrap();
        body.insert("version".into(), json!(1));
        for added in ["versions", "baseline", "findings", "erased", "energy", "key_id"] {
            body.remove(added).unwrap();
        }
        body["deployed"].as_object_mut().unwrap().remove("partitions").unwrap();
        let signature = key.sign(file["passport"].to_string().as_bytes());
        file["signature"] = json!(hex::encode(signature));
        let signed = Signed::parse(&file.to_string()).unwrap();
        signed.verify(&[key.public()]).unwrap();
        let passport = signed.read().unwrap();
        assert!(passport.version == 1 && passport.erased.is_none() && passport.versions.is_empty());
    }

    proptest! {
        #[test]
        fn any_fraction_reads_back_as_it_was_signed(numbers in prop::collection::vec(any::<f64>(), 1..20), scale in -30..30i32) {
            let numbers: Vec<f64> = numbers.iter().flat_map(|n| [*n, (n % 1e6) * 10f64.powi(scale)]).collect();
            // Larger ones are no measurement, and `issue` is not given any.
            let mut value = json!(numbers.iter().filter(|n| n.abs() < 1e22).collect::<Vec<_>>());
            settle(&mut value);
            let text = value.to_string();
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap().to_string(), text);
        }
    }
}
