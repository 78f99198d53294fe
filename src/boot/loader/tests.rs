//! The choice as DHCP, TFTP and HTTP see it: packets and fetches in, boot files and sentences out.

use super::*;
use crate::boot::config::tests::sample;
use crate::boot::{Facts, Unanswered};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);

/// Rules that know nobody and have every machine wait.
pub struct Nobody;

impl Policy for Nobody {
    fn sighted(&self, _: Sighting) {}

    fn unanswered(&self, _: Unanswered) {}

    fn facts(&self, _: MacAddr) -> Option<Facts> {
        None
    }

    fn boot_answer(&self, _: Sighting) -> BoxFuture<'_, Result<BootAnswer>> {
        Box::pin(async { Ok(BootAnswer::Hold { reason: "nobody is known".into() }) })
    }
}

/// Loaders that nobody wrote rules for and that remember nothing.
pub fn loaders(config: &BootConfig) -> Arc<Loaders> {
    with_policy(config, Arc::new(Nobody), vec![]).0
}

fn with_policy(
    config: &BootConfig,
    policy: Arc<dyn Policy>,
    known: Vec<Learnt>,
) -> (Arc<Loaders>, tokio::sync::mpsc::Receiver<Learnt>) {
    let scripts = Arc::new(Scripts::new(config, "ab12").unwrap());
    let (send, receive) = tokio::sync::mpsc::channel(16);
    (Arc::new(Loaders::new(config, Arc::new(Files::sample()), scripts, policy, known, send).unwrap()), receive)
}

/// Knows one machine, and keeps its timeline.
#[derive(Default)]
struct Known {
    noted: Mutex<Vec<String>>,
}

impl Policy for Known {
    fn sighted(&self, _: Sighting) {}

    fn unanswered(&self, _: Unanswered) {}

    fn facts(&self, mac: MacAddr) -> Option<Facts> {
        let facts = Facts { name: "kvm-1".into(), model: Some("LW-R1".into()), role: None, state: "ready" };
        (mac == MAC).then_some(facts)
    }

    fn noted(&self, mac: MacAddr, sentence: String) {
        assert_eq!(mac, MAC);
        self.noted.lock().unwrap().push(sentence);
    }

    fn boot_answer(&self, asking: Sighting) -> BoxFuture<'_, Result<BootAnswer>> {
        assert_eq!((asking.mac, asking.stage), (MAC, Stage::Ipxe));
        Box::pin(async { Ok(BootAnswer::Hold { reason: "no order for it".into() }) })
    }
}

fn asking(mac: MacAddr, arch: ClientArch, stage: Stage, begins: bool) -> Asking {
    Asking { mac, uuid: None, arch: Some(arch), stage, http: arch.is_http(), address: "10.77.2.1".parse().ok(), begins }
}

/// DISCOVER and REQUEST of a ROM: both get the same file. Its name.
fn rom(loaders: &Loaders, mac: MacAddr, arch: ClientArch) -> String {
    let offered = loaders.boot_file(&asking(mac, arch, Stage::Rom, true));
    assert_eq!(loaders.boot_file(&asking(mac, arch, Stage::Rom, false)), offered);
    match offered {
        BootFile::Tftp { name, .. } => name,
        BootFile::Http { url } => url.rsplit('/').next().unwrap().to_owned(),
        other => panic!("{other:?}"),
    }
}

fn fetch(loaders: &Loaders, name: &str) {
    loaders.fetched_by("10.77.2.1".parse().unwrap(), name);
}

#[test]
fn a_stall_leads_to_the_next_file_and_into_the_timeline() {
    let known = Arc::new(Known::default());
    let (loaders, mut learnt) = with_policy(&sample(), known.clone(), vec![]);
    assert_eq!(rom(&loaders, MAC, ClientArch::UefiX64), "snponly.efi");
    fetch(&loaders, "snponly.efi");
    assert_eq!(rom(&loaders, MAC, ClientArch::UefiX64), "ipxe.efi");
    fetch(&loaders, "ipxe.efi");
    assert!(matches!(loaders.boot_file(&asking(MAC, ClientArch::UefiX64, Stage::Ipxe, true)), BootFile::Script { .. }));
    assert_eq!(learnt.try_recv().unwrap(), Learnt { mac: MAC, loader: "ipxe.efi".into() });
    assert_eq!(rom(&loaders, MAC, ClientArch::UefiX64), "ipxe.efi");
    let noted = known.noted.lock().unwrap();
    let first = "snponly.efi was fetched but did not start on 52:54:00:77:00:01; trying ipxe.efi";
    assert_eq!(*noted, [first, "ipxe.efi started on 52:54:00:77:00:01 and is offered first from now on"]);
}

#[test]
fn what_was_learnt_in_an_earlier_run_is_offered_first() {
    let known = vec![Learnt { mac: MAC, loader: "shimx64.efi".into() }];
    let (loaders, mut learnt) = with_policy(&sample(), Arc::new(Nobody), known);
    assert_eq!(rom(&loaders, MAC, ClientArch::UefiX64), "shimx64.efi");
    fetch(&loaders, "shimx64.efi");
    loaders.speaks(MAC);
    assert!(learnt.try_recv().is_err(), "nothing new is not written again");
    // It is no candidate of UEFI HTTP boot, nor of another firmware.
    assert_eq!(rom(&loaders, MAC, ClientArch::HttpX64), "snponly.efi");
    assert_eq!(rom(&loaders, MAC, ClientArch::Bios), "undionly.kpxe");
}

#[test]
fn a_stall_over_tftp_counts_over_http_too() {
    let loaders = loaders(&sample());
    assert_eq!(rom(&loaders, MAC, ClientArch::UefiX64), "snponly.efi");
    fetch(&loaders, "snponly.efi");
    assert_eq!(rom(&loaders, MAC, ClientArch::HttpX64), "ipxe.efi");
    loaders.fetched(MAC, "ipxe.efi");
    assert_eq!(rom(&loaders, MAC, ClientArch::UefiX64), "shimx64.efi");
}

#[test]
fn the_nearest_rule_counts() {
    let mut config = sample();
    let rule = |text: &str| toml::from_str::<LoaderRule>(text).unwrap();
    config.loaders = vec![
        rule("arch = \"uefi-x64\"\nuse = [\"shimx64.efi\"]"),
        rule("model = \"lw-r1\"\narch = \"uefi-x64\"\nuse = [\"ipxe.efi\", \"snponly.efi\"]"),
    ];
    config.check().unwrap();
    let stranger = MacAddr([2, 0, 0, 0, 0, 9]);
    let names = |config: &BootConfig, mac, arch| {
        let (names, order) = with_policy(config, Arc::new(Known::default()), vec![]).0.candidates(mac, arch);
        (names.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(" "), order)
    };
    assert_eq!(names(&config, MAC, ClientArch::UefiX64), ("ipxe.efi snponly.efi".into(), Order::Model));
    assert_eq!(names(&config, stranger, ClientArch::UefiX64), ("shimx64.efi".into(), Order::Site));
    assert_eq!(names(&config, MAC, ClientArch::Bios), ("undionly.kpxe ipxe.pxe".into(), Order::Architecture));
    let own = "machine = \"kvm-1\"\nloaders = [\"ipxe.pxe\", \"snponly.efi\"]";
    config.overrides = vec![toml::from_str(own).unwrap()];
    config.check().unwrap();
    assert_eq!(names(&config, MAC, ClientArch::UefiX64), ("snponly.efi".into(), Order::Machine));
    assert_eq!(names(&config, MAC, ClientArch::Bios), ("ipxe.pxe".into(), Order::Machine));
    assert_eq!(names(&config, MAC, ClientArch::HttpX64), ("snponly.efi".into(), Order::Machine));
    assert_eq!(names(&config, stranger, ClientArch::UefiX64), ("shimx64.efi".into(), Order::Site));
}

#[test]
fn another_configuration_is_taken_over_as_a_whole_or_not_at_all() {
    let (loaders, _) = with_policy(&sample(), Arc::new(Nobody), vec![]);
    let mut config = BootConfig { url: "http://10.77.0.2".into(), ..sample() };
    config.loaders = vec![toml::from_str("arch = \"bios\"\nuse = [\"ipxe.pxe\"]").unwrap()];
    let mut wrong = config.clone();
    wrong.overrides = vec![toml::from_str("machine = \"a\"\nscript = \"/nowhere/x.ipxe\"").unwrap()];
    assert_eq!(loaders.reconfigure(&wrong).unwrap_err().code(), "boot.template");
    assert_eq!(rom(&loaders, MAC, ClientArch::Bios), "undionly.kpxe");
    loaders.reconfigure(&config).unwrap();
    assert_eq!(rom(&loaders, MAC, ClientArch::Bios), "ipxe.pxe");
    let BootFile::Script { url } = loaders.boot_file(&asking(MAC, ClientArch::Bios, Stage::Ipxe, true)) else {
        panic!("no script")
    };
    assert!(url.starts_with("http://10.77.0.2/boot/ipxe?mac=52:54:00:77:00:01"), "{url}");
}

#[test]
fn looking_changes_nothing() {
    let loaders = loaders(&sample());
    let (candidates, _) = loaders.candidates(MAC, ClientArch::UefiX64);
    rom(&loaders, MAC, ClientArch::UefiX64);
    fetch(&loaders, "snponly.efi");
    for _ in 0..3 {
        let (choice, stalled) = loaders.choice(MAC, &candidates);
        assert_eq!((choice.unwrap(), stalled.len()), (("snponly.efi".into(), Why::First), 0));
    }
}

#[test]
fn firmware_that_boots_by_http_is_known_by_its_vendor_class() {
    let loaders = loaders(&sample());
    let odd = Asking { http: true, ..asking(MAC, ClientArch::UefiX64, Stage::Rom, true) };
    let url = "http://10.77.0.1/boot/loader/52-54-00-77-00-01/snponly.efi".to_owned();
    assert_eq!(loaders.boot_file(&odd), BootFile::Http { url });
    let none = Asking { arch: None, ..odd };
    assert_eq!(loaders.boot_file(&none), BootFile::None);
}

#[tokio::test]
async fn grub_reads_its_configuration_and_then_the_script_of_its_machine() {
    let (loaders, mut learnt) = with_policy(&sample(), Arc::new(Known::default()), vec![]);
    let Some(File::Ready(config)) = loaders.file("grub/grub.cfg") else { panic!("no grub.cfg") };
    assert!(config.starts_with(b"#") && String::from_utf8_lossy(&config).contains("$prefix/$net_default_mac.cfg"));
    loaders.boot_file(&asking(MAC, ClientArch::UefiX64, Stage::Rom, true));
    fetch(&loaders, "snponly.efi");
    rom(&loaders, MAC, ClientArch::UefiX64);
    fetch(&loaders, "ipxe.efi");
    assert_eq!(rom(&loaders, MAC, ClientArch::UefiX64), "shimx64.efi");
    fetch(&loaders, "shimx64.efi");
    fetch(&loaders, "grubx64.efi");
    // As GRUB writes `$net_default_mac`.
    let Some(File::Made(making)) = loaders.file("grub/52:54:00:77:00:01.cfg") else { panic!("no script") };
    let script = making.await.unwrap();
    assert!(String::from_utf8_lossy(&script).contains("echo \"Rackline: waiting: no order for it\""), "{script:?}");
    assert_eq!(&*learnt.try_recv().unwrap().loader, "shimx64.efi");
    for name in ["grub/zz.cfg", "grub/x86_64-efi/command.lst", "grub/.cfg", "grub/52:54:00:77:00:01", "nothing"] {
        assert!(loaders.file(name).is_none(), "{name}");
    }
}
