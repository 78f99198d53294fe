//! Which boot file a machine gets, on real firmware: what stalls is found out and passed over, UEFI boots by HTTP, and with
//! Secure Boot. And `boot explain`, which says all of it beforehand and changes nothing.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use rackline::api::{self, Shared};
use rackline::boot::Policy;
use rackline::boot::config::BootConfig;
use rackline::boot::dhcp::Dhcp;
use rackline::boot::explain::{Explainer, Explanation};
use rackline::boot::firmware::Files;
use rackline::boot::loader::Loaders;
use rackline::boot::monitor::{Monitor, Status};
use rackline::boot::script::Scripts;
use rackline::boot::{BootAnswer, Sighting, Stage};
use rackline::engine::Engine;
use rackline::image::{Cache, RamSystem};
use rackline::image::{Library, SigningKey};
use rackline::machine::{ClientArch, MacAddr, MachineId};
use rackline::role::Templates;
use rackline::store::Db;
use tower::ServiceExt;

use crate::engine::start;
use crate::net::{Appliance, CONFIG as WIRE, Net, PATIENCE, Running, Watcher, can_run, run};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);

pub const CONFIG: &str = r#"
    url = "http://10.77.0.1"
    interfaces = [{ name = "lab0", address = "10.77.0.1" }]
    [[subnets]]
    network = "10.77.0.0/16"
    pools = ["10.77.2.0-10.77.2.255"]
    reservations = [{ mac = "52:54:00:77:00:01", address = "10.77.9.9" }]
"#;

pub async fn engine(dir: &Path) -> Engine {
    start(dir).await.0
}

/// The API for people, with a boot configuration and no sockets.
pub fn people(dir: &Path, engine: &Engine, config: &BootConfig) -> axum::Router {
    api::people(shared(dir, engine, config))
}

pub fn shared(dir: &Path, engine: &Engine, config: &BootConfig) -> Shared {
    let key = SigningKey::load_or_create(&dir.join("signing.key")).unwrap().public();
    let scripts = Arc::new(Scripts::new(config, &key.to_string()).unwrap());
    let files = Arc::new(Files::installed().unwrap());
    let policy: Arc<dyn Policy> = Arc::new(engine.clone());
    let (learns, _) = tokio::sync::mpsc::channel(1);
    let loaders = Arc::new(Loaders::new(config, files, scripts, policy.clone(), vec![], learns).unwrap());
    let dhcp = Arc::new(Mutex::new(Dhcp::new(config, [], loaders.clone(), Arc::default(), policy.clone())));
    let monitor = Monitor::new(dhcp.clone(), config, Arc::default());
    let boot = Arc::new(Explainer { dhcp, loaders, policy, preview: Arc::new(engine.clone()) });
    let library = Arc::new(Library::open(&dir.join("images"), &[key]).unwrap());
    let web = Arc::default();
    Shared {
        engine: engine.clone(),
        library,
        boot,
        monitor,
        web,
        torrents: None,
        ssh_keys: Arc::new([]),
        roles: Templates::new(None),
        authority: crate::handoff::authority(),
    }
}

async fn explain(people: &axum::Router, what: &str) -> Result<Explanation, String> {
    get(people, &format!("/api/v1/boot/explain/{what}")).await
}

async fn get<T: serde::de::DeserializeOwned>(people: &axum::Router, path: &str) -> Result<T, String> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = people.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    match status.is_success() {
        true => Ok(serde_json::from_slice(&body).unwrap()),
        false => Err(format!("{status} {}", String::from_utf8_lossy(&body))),
    }
}

#[tokio::test]
async fn the_status_counts_for_every_boot_service_and_for_the_web_server() {
    let dir = tempfile::tempdir().unwrap();
    let people = people(dir.path(), &engine(dir.path()).await, &toml::from_str(CONFIG).unwrap());
    let status: Status = get(&people, "/api/v1/boot").await.unwrap();
    for name in ["offer", "http-connection", "http-file-bytes"] {
        assert_eq!(status.counters.get(name), Some(&0), "{name} of {:?}", status.counters);
    }
}

#[tokio::test]
async fn explain_says_what_a_machine_would_get_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let people = people(dir.path(), &engine, &toml::from_str(CONFIG).unwrap());

    let stranger = explain(&people, "52-54-00-77-00-01").await.unwrap();
    assert_eq!((stranger.mac, stranger.machine.as_ref()), (MAC, None));
    assert_eq!(stranger.networks[0].address, Some("10.77.9.9".parse().unwrap()));
    assert_eq!(stranger.loaders.len(), 3);
    assert_eq!(stranger.answer.boots, "agent");
    assert!(stranger.answer.why.contains("nobody knows"));
    assert!(engine.machines().is_empty(), "asking for an explanation is not booting");

    // It boots as far as its script.
    let asking = Sighting {
        mac: MAC,
        uuid: None,
        arch: Some(ClientArch::UefiX64),
        address: "10.77.9.9".parse().ok(),
        stage: Stage::Ipxe,
        relay: None,
    };
    let BootAnswer::Agent { machine, token } = engine.boot_answer(asking).await.unwrap() else { panic!("no agent") };
    while engine.machine(machine).unwrap().served.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = engine.machine(machine).unwrap();
    let events = engine.db().events(machine, 0, 100).await.unwrap().len();
    let known = explain(&people, &MAC.to_string()).await.unwrap();
    let named = known.machine.as_ref().unwrap();
    assert_eq!((named.name.as_str(), named.state.as_str()), ("mac-525400770001", "seen"));
    assert_eq!(known.answer.why, "a machine that is seen boots the agent");
    let loader = &known.loaders[0];
    assert_eq!((loader.arch, loader.loader.as_deref()), (ClientArch::UefiX64, Some("snponly.efi")));
    assert_eq!(loader.candidates, ["snponly.efi", "ipxe.efi", "shimx64.efi"]);
    assert!(known.answer.script.contains("rackline.token=not-shown ") && !known.answer.script.contains(&token));
    let http = explain(&people, &format!("{MAC}?arch=http-x64")).await.unwrap();
    assert_eq!(http.loaders[0].candidates, ["snponly.efi", "ipxe.efi"]);
    assert_eq!(explain(&people, &MAC.to_string()).await.unwrap(), known);
    assert_eq!(engine.machine(machine).unwrap(), before);
    assert_eq!(engine.db().events(machine, 0, 100).await.unwrap().len(), events);

    for (what, status) in [("52:54", "422"), ("52-54-00-77-00-01?arch=vax", "422")] {
        assert!(explain(&people, what).await.unwrap_err().starts_with(status), "{what}");
    }
}

/// Clients behind a bridge, so that virtual machines can be plugged in.
fn switched() -> Net {
    let net = Net::new();
    let ns = net.client.as_str();
    run("ip", &["-n", ns, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"]);
    run("ip", &["-n", ns, "link", "set", "br0", "up"]);
    run("ip", &["-n", ns, "link", "set", "c0", "master", "br0"]);
    run("ip", &["-n", ns, "tuntap", "add", "dev", "tap0", "mode", "tap"]);
    run("ip", &["-n", ns, "link", "set", "tap0", "master", "br0", "up"]);
    net
}

/// What OVMF is to try.
enum Uefi {
    /// HTTP boot and nothing else, without Secure Boot.
    Http,
    /// PXE and nothing else, with Microsoft's and Debian's keys enrolled.
    SecurePxe,
}

/// A UEFI machine whose card has no ROM of its own: firmware does everything. Its console goes to a file.
fn machine(net: &Net, uefi: &Uefi, console: &str) -> Running {
    let vars = net.path("vars.fd");
    let (code, keys, chipset) = match uefi {
        Uefi::Http => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "q35,graphics=off"),
        // Secure Boot's variables are guarded by system management mode.
        Uefi::SecurePxe => ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd", "q35,smm=on,graphics=off"),
    };
    if !vars.exists() {
        std::fs::copy(Path::new("/usr/share/OVMF").join(keys), &vars).unwrap();
    }
    let mut args: Vec<String> = Vec::new();
    for (option, value) in [
        ("-accel", "tcg,thread=multi,tb-size=128".to_owned()),
        ("-cpu", "EPYC,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec".into()),
        ("-M", chipset.into()),
        ("-m", "768".into()),
        ("-display", "none".into()),
        ("-global", "driver=cfi.pflash01,property=secure,value=on".into()),
        ("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/{code}")),
        ("-drive", format!("if=pflash,format=raw,unit=1,file={}", vars.display())),
        ("-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no".into()),
        ("-serial", format!("file:{}", net.path(console).display())),
        ("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no".into()),
        ("-device", format!("virtio-net-pci,netdev=n0,mac={MAC},romfile=,bootindex=1")),
        ("-device", "virtio-rng-pci".into()),
    ] {
        args.extend([option.to_owned(), value]);
    }
    if matches!(uefi, Uefi::Http) {
        args.extend(["-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no"].map(str::to_owned));
        args.retain(|a| !a.contains("pflash01") && a != "-global");
    }
    let disk = net.path("disk");
    if disk.exists() {
        args.extend(["-drive".to_owned(), format!("if=none,id=d0,format=raw,file={}", disk.display())]);
        // With a place in the boot order: OVMF connects no other disks.
        args.extend(["-device", "virtio-blk-pci,drive=d0,bootindex=2"].map(str::to_owned));
    }
    args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Running(net.client("qemu-system-x86_64", &args).spawn().unwrap())
}

/// What a machine has written to its console.
fn console(net: &Net, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(net.path(name)).unwrap_or_default()).into_owned()
}

/// Waits until the console has all of these; where that never comes, shows what it has instead.
fn shows(net: &Net, name: &str, all: &[&str]) {
    let end = Instant::now() + PATIENCE;
    loop {
        let text = console(net, name);
        if all.iter().all(|part| text.contains(part)) {
            return;
        }
        assert!(Instant::now() < end, "the console never shows {all:?}, but:\n{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn uefi_boots_by_http() {
    if !can_run(&["ip", "qemu-system-x86_64"]) {
        return;
    }
    let net = switched();
    // Nothing over TFTP.
    let config = WIRE.replace("[[subnets]]", "tftp = false\n[[subnets]]");
    let appliance = Appliance::start_with(&net, Files::installed().unwrap(), &config).unwrap();
    let guest = machine(&net, &Uefi::Http, "console");
    shows(&net, "console", &[&format!("Rackline: waiting: nothing to do for {MAC}")]);
    drop(guest);
    let seen = appliance.watcher.seen();
    assert!(seen.iter().any(|s| (s.stage, s.arch) == (Stage::Rom, Some(ClientArch::HttpX64))), "{seen:?}");
    assert!(seen.iter().any(|s| s.stage == Stage::Ipxe));
    appliance.stop(&net);
    assert_eq!(learnt(&net), [(MAC, "snponly.efi".to_owned())]);
}

fn learnt(net: &Net) -> Vec<(MacAddr, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rows = runtime.block_on(async {
        rackline::store::loader::load(&Db::open(&net.path("state")).await.unwrap(), 10).await.unwrap()
    });
    rows.into_iter().map(|l| (l.mac, l.loader.to_string())).collect()
}

/// Made by `make images`; its kernel is Debian's, with Debian's signature.
fn ram_system() -> RamSystem {
    RamSystem::newest(&Cache::open_or_default(None).unwrap()).unwrap()
}

/// A disk as images make them: an EFI system partition with a boot loader that nobody signed, and a root file system with
/// a kernel that Debian did.
fn installed_disk(net: &Net, system: &RamSystem) {
    const MIB: u64 = 1 << 20;
    let (disk, root) = (net.path("disk"), net.path("root"));
    let disk_name = disk.to_str().unwrap();
    std::fs::File::create(&disk).unwrap().set_len(112 * MIB).unwrap();
    let table = "label: gpt\nstart=1MiB, size=40MiB, type=uefi\nstart=41MiB, size=70MiB, type=linux\n";
    std::fs::write(net.path("table"), table).unwrap();
    let sfdisk = format!("sfdisk -q {disk_name} < {}", net.path("table").display());
    run("sh", &["-c", &sfdisk]);
    let esp = format!("{disk_name}@@{MIB}");
    run("mformat", &["-i", &esp, "-F", "-T", "81920", "::"]);
    run("mmd", &["-i", &esp, "::/EFI", "::/EFI/BOOT"]);
    run("mcopy", &["-i", &esp, system.local_efi.to_str().unwrap(), "::/EFI/BOOT/BOOTX64.EFI"]);
    std::fs::create_dir_all(root.join("boot/grub")).unwrap();
    let config = "set timeout=0\nmenuentry Linux {\n linux /vmlinuz root=LABEL=root console=ttyS0 no_timer_check\n \
                  initrd /initrd.img\n}\n";
    std::fs::write(root.join("boot/grub/grub.cfg"), config).unwrap();
    std::fs::copy(&system.vmlinuz, root.join("vmlinuz")).unwrap();
    std::fs::copy(&system.base, root.join("initrd.img")).unwrap();
    let offset = format!("offset={}", 41 * MIB);
    let root = root.to_str().unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-L", "root", "-d", root, "-E", &offset, disk_name, "70M"]);
}

/// A delivered host that asks the network first is sent to its disk, whose own boot loader Secure Boot refuses.
#[test]
fn a_host_with_secure_boot_starts_from_its_own_disk() {
    if !can_run(&["ip", "qemu-system-x86_64", "sfdisk", "mformat", "mke2fs"]) {
        return;
    }
    let net = switched();
    installed_disk(&net, &ram_system());
    let own = format!("[[overrides]]\nmac = \"{MAC}\"\nloaders = [\"shimx64.efi\"]\n[[subnets]]");
    let answer = BootAnswer::LocalDisk { machine: MachineId(uuid::Uuid::nil()) };
    let watcher = Watcher { answer: Some(answer), ..Watcher::default() };
    let config = WIRE.replace("[[subnets]]", &own);
    let _appliance = Appliance::start_as(&net, Files::installed().unwrap(), &config, watcher).unwrap();
    let _guest = machine(&net, &Uefi::SecurePxe, "console");
    shows(&net, "console", &["Rackline: starting from the local disk", "Secure boot enabled", "root=LABEL=root"]);
}

/// Secure Boot refuses iPXE, which Debian does not sign. That is learnt, and the next boot goes by shim and GRUB, which are
/// signed, to the agent's kernel, which is too. Nobody told the appliance that this machine has Secure Boot.
#[test]
fn secure_boot_is_found_out_and_boots_the_agents_kernel() {
    if !can_run(&["ip", "qemu-system-x86_64"]) {
        return;
    }
    let net = switched();
    let system = ram_system();
    let files = Files::installed().unwrap().with("vmlinuz", &system.vmlinuz).unwrap();
    let files = files.with("initrd", &system.base).unwrap().over_tftp(&["vmlinuz", "initrd"]).unwrap();
    let rule = "kernel_args = [\"no_timer_check\", \"panic=10\"]\n[[loaders]]\narch = \"uefi-x64\"\n\
                use = [\"snponly.efi\", \"shimx64.efi\"]\n[[subnets]]";
    let answer = BootAnswer::Agent { machine: MachineId(uuid::Uuid::nil()), token: "t0ken".into() };
    let watcher = Watcher { answer: Some(answer), ..Watcher::default() };
    let appliance = Appliance::start_as(&net, files, &WIRE.replace("[[subnets]]", rule), watcher).unwrap();

    let refused = machine(&net, &Uefi::SecurePxe, "first");
    shows(&net, "first", &["Access Denied"]);
    drop(refused);
    // What a person or its BMC does next.
    let guest = machine(&net, &Uefi::SecurePxe, "second");
    shows(&net, "second", &["Secure boot enabled", "rackline.token=t0ken"]);
    drop(guest);
    let notes = appliance.watcher.notes();
    // What is tried next depends on whether the firmware got as far as HTTP boot before it was switched off.
    assert!(notes[0].starts_with(&format!("snponly.efi was fetched but did not start on {MAC}; trying ")), "{notes:?}");
    let works = format!("shimx64.efi started on {MAC} and is offered first from now on");
    assert_eq!(notes.last(), Some(&works));
    appliance.stop(&net);
    assert_eq!(learnt(&net), [(MAC, "shimx64.efi".to_owned())]);
}
