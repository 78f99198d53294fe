//! The passport on paper: one A4 page that says the same as the file, with like parts in one row, and how to check it.

use std::collections::BTreeMap;

use askama::Template;

use super::passport::Signed;
use crate::error::{Kind, OrFail, Result};
use crate::lifecycle::Millis;
use crate::lifecycle::passport::Passport;
use crate::link::{Check, Measured};
use crate::machine::{Dimm, Disk, Inventory, Serial};

#[derive(Template)]
#[template(path = "passport.html")]
struct Page {
    name: String,
    title: Vec<(&'static str, String)>,
    parts: Vec<Part>,
    versions: Vec<(String, String)>,
    layout: Vec<Part>,
    checks: Vec<CheckRow>,
    measured: Vec<Measurement>,
    findings: Vec<String>,
    erased: Vec<String>,
    times: String,
    key: String,
    key_id: String,
    signature: String,
    version: u32,
}

/// What it is, how many of them, and the serial numbers.
struct Part {
    what: String,
    which: String,
}

struct CheckRow {
    id: String,
    found: String,
    seconds: String,
}

struct Measurement {
    name: String,
    value: String,
    /// Where machines stand that are built alike.
    twins: String,
}

/// A document by itself: style and all, nothing to fetch.
pub fn html(signed: &Signed) -> Result<String> {
    let passport = signed.read()?;
    page(signed, passport).render().or_fail(Kind::Internal, "passport.render", || "the passport has no page")
}

fn page(signed: &Signed, p: Passport) -> Page {
    let system = &p.inventory.system;
    let machine = [system.manufacturer.clone(), system.product.clone()].into_iter().flatten().collect::<Vec<_>>();
    let energy = p.energy.as_ref().map(|e| format!("{:.0} W ({})", e.watts, e.sensors.join(", ")));
    let title = [
        ("Host", Some(p.hostname.to_string())),
        ("Delivered", Some(time(p.issued_at))),
        ("Role", Some(p.role.to_string())),
        ("Image", Some(format!("{}, manifest {}", p.image, p.deployed.manifest))),
        ("Machine", Some(machine.join(" ")).filter(|m| !m.is_empty())),
        ("Serial number", system.serial.as_ref().map(Serial::to_string)),
        ("Place", p.place.as_ref().map(|place| place.to_string())),
        ("Firmware", p.firmware.map(|f| format!("boots by {f}"))),
        ("Baseline", p.baseline.clone()),
        ("Power at delivery", energy),
    ];
    let seconds = |millis: Millis| millis as f64 / 1000.0;
    let times: Vec<String> = p.times.iter().map(|t| format!("{} {:.0} s", t.state, seconds(t.millis))).collect();
    Page {
        name: p.name.clone(),
        title: title.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        parts: parts(&p.inventory),
        versions: versions(&p),
        layout: layout(&p),
        checks: p.checks.iter().map(check).collect(),
        measured: p.measured.iter().map(measurement).collect(),
        findings: p
            .findings
            .iter()
            .map(|f| format!("{}: {f}", f.severity))
            .chain(p.checks.iter().filter_map(warned))
            .collect(),
        erased: erased(&p),
        times: times.join(", "),
        key: signed.key().to_string(),
        key_id: signed.key().id().to_string(),
        signature: signed.signature(),
        version: p.version,
    }
}

/// A check that was not as it should be, and holds no host back.
fn warned(c: &Check) -> Option<String> {
    c.failed().then(|| format!("{}: {}: expected {}, found {}", c.severity, c.id, c.expected, c.found))
}

fn check(c: &Check) -> CheckRow {
    CheckRow { id: c.id.clone(), found: c.found.clone(), seconds: format!("{:.1} s", c.seconds) }
}

fn measurement(m: &Measured) -> Measurement {
    let twins = m.twins.as_ref().map_or(String::new(), |t| format!("median of {} twins {}", t.count, Short(t.median)));
    Measurement { name: m.name.clone(), value: format!("{} {}", Short(m.value), m.unit), twins }
}

/// Four significant digits, as many as a measurement has.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let before = self.0.abs().log10().floor().clamp(-6.0, 6.0) as i32 + 1;
        write!(f, "{:.*}", (4 - before).clamp(0, 6) as usize, self.0)
    }
}

fn time(millis: Millis) -> String {
    let at = jiff::Timestamp::from_millisecond(millis);
    at.map_or(String::new(), |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

fn bytes(count: u64) -> String {
    match count {
        1_000_000_000_000.. => format!("{:.1} TB", count as f64 / 1e12),
        1_000_000_000.. => format!("{} GB", count / 1_000_000_000),
        _ => format!("{} MiB", count >> 20),
    }
}

fn serial(serial: Option<&Serial>) -> &str {
    serial.map_or("no serial", Serial::as_str)
}

/// Like ones in one row, in the order in which the first of each comes.
fn alike<T>(items: &[T], kind: impl Fn(&T) -> String, one: impl Fn(&T) -> String) -> Vec<Part> {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for item in items {
        let kind = kind(item);
        match rows.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, which)) => which.push(one(item)),
            None => rows.push((kind, vec![one(item)])),
        }
    }
    let row = |(kind, which): (String, Vec<String>)| Part {
        what: format!("{} × {kind}", which.len()),
        which: which.join(", "),
    };
    rows.into_iter().map(row).collect()
}

fn parts(inventory: &Inventory) -> Vec<Part> {
    let mut rows =
        alike(&inventory.cpus, |cpu| format!("{}, {} cores", cpu.model, cpu.cores), |cpu| cpu.socket.clone());
    let dimm = |d: &Dimm| {
        let part = [d.manufacturer.clone(), d.part.clone()].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let speed = d.speed_mts.map_or(String::new(), |speed| format!(" at {speed} MT/s"));
        format!("{} GiB {part}{speed}", d.size_bytes >> 30)
    };
    rows.extend(alike(&inventory.memory.dimms, dimm, |d| format!("{} {}", d.slot, serial(d.serial.as_ref()))));
    if inventory.memory.dimms.is_empty() {
        let what = format!("{} MiB of memory", inventory.memory.usable_bytes >> 20);
        rows.push(Part { what, which: "no DIMMs named by the firmware".into() });
    }
    let disk = |d: &Disk| {
        let kind = if d.rotational { "rotating" } else { "SSD" };
        format!("{} {} {} {kind}", d.model.as_deref().unwrap_or("disk"), bytes(d.size_bytes), d.transport)
    };
    rows.extend(alike(&inventory.disks, disk, |d| {
        format!("{} {}", d.slot.as_ref().unwrap_or(&d.name), serial(d.serial.as_ref()))
    }));
    let nic = |n: &crate::machine::Nic| {
        let speed = n.speed_mbps.map_or("no link".to_owned(), |speed| format!("{speed} Mb/s"));
        let speed = if n.link && n.speed_mbps.is_none() { "link".into() } else { speed };
        format!("NIC {}, {speed}", n.driver.as_deref().unwrap_or("without driver"))
    };
    rows.extend(alike(&inventory.nics, nic, |n| {
        let far = n.neighbour.as_ref().map_or(String::new(), |far| format!(" on {} {}", far.switch, far.port));
        format!("{} {}{far}", n.name, n.mac)
    }));
    rows
}

/// Each version once, with the parts that have it.
fn versions(p: &Passport) -> Vec<(String, String)> {
    let mut by_version: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for v in &p.versions {
        let (kind, name) = v.part.split_once(' ').unwrap_or((&v.part, ""));
        by_version.entry((kind.to_owned(), v.version.clone())).or_default().push(name.to_owned());
    }
    let row = |((kind, version), names): ((String, String), Vec<String>)| {
        (format!("{kind} {}", names.join(", ")).trim_end().to_owned(), version)
    };
    by_version.into_iter().map(row).collect()
}

fn layout(p: &Passport) -> Vec<Part> {
    let d = &p.deployed;
    let read = format!("{} written, {} read back and compared", bytes(d.written_bytes), bytes(d.read_back_bytes));
    let disk = Part { what: format!("{} {}", d.disk, serial(d.serial.as_ref())), which: read };
    let partition = |part: &crate::link::Partition| Part {
        what: format!("{}, partition {}", d.disk, part.number),
        which: format!("{} {} at {}", part.name, bytes(part.size_bytes), bytes(part.start_bytes)),
    };
    std::iter::once(disk).chain(d.partitions.iter().map(partition)).collect()
}

fn erased(p: &Passport) -> Vec<String> {
    let Some(erased) = &p.erased else {
        return vec!["Not given back here before: this appliance has not erased it.".into()];
    };
    let each = erased.disks.iter().map(|d| {
        let read = match d.how.complete() {
            true => format!("; {} in samples read back as zero", bytes(d.read_back_bytes)),
            false => String::new(),
        };
        format!("{} {}, {}: {}{read}", d.name, serial(d.serial.as_ref()), bytes(d.size_bytes), d.how)
    });
    std::iter::once(format!("On {}:", time(erased.at))).chain(each).collect()
}

#[cfg(test)]
mod tests {
    use super::super::passport::{issue, tests};
    use super::*;
    use crate::image::SigningKey;
    use crate::machine::Role;

    fn large(change: impl Fn(&mut crate::lifecycle::Machine)) -> String {
        let mut machine = tests::large(Role::Kvm);
        change(&mut machine);
        let file = issue(&SigningKey::generate().unwrap(), &machine, tests::facts(), 1_790_000_100_000).unwrap();
        html(&Signed::of(file).unwrap()).unwrap()
    }

    #[test]
    fn like_parts_are_one_row_with_every_serial_number() {
        let page = large(|_| {});
        for part in [
            "2 × Intel(R) Xeon(R) Gold 6230R CPU @ 2.10GHz, 26 cores",
            "16 × 32 GiB Samsung M393A4K40DB3-CWE at 2933 MT/s",
            "12 × ST16000NM002G 16.0 TB sas rotating",
            "B8 03B1D415",
            "2 × NIC bnxt_en, no link",
            "securely discarded, reads zero; 4 MiB in samples read back as zero",
            "220 W (Pwr Consumption)",
            "11235 MB/s",
            "median of 46 twins 11100",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        assert_eq!(page.matches("<tr>").count(), page.matches("</tr>").count());
    }

    #[test]
    fn what_a_machine_says_of_itself_does_not_become_markup() {
        let page = large(|machine| machine.name = "<script>alert(1)</script>".into());
        assert!(!page.contains("<script>") && page.contains("&#60;script&#62;"));
    }

    #[test]
    fn a_measurement_has_four_digits() {
        let short = [11_234.567, 3_112.0, 41.7, 0.012_345, 0.0].map(|n| Short(n).to_string());
        assert_eq!(short, ["11235", "3112", "41.70", "0.01235", "0.000000"].map(str::to_owned));
    }
}
