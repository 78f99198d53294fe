//! Genuine UEFI firmware: OVMF without QEMU's iPXE ROM, so that it boots by its own PXE and HTTP clients, as a server's
//! firmware does.

use rackline::boot::Stage;
use rackline::boot::firmware::Files;
use rackline::machine::ClientArch;

use crate::net::{Appliance, Net, Running, can_run, run, until};
use crate::wire::{Tap, keep};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];

/// Firmware gets its boot file from us, and the iPXE in it gets its script.
fn boots(name: &str, arch: ClientArch, more: &[&str]) {
    if !can_run(&["ip", "qemu-system-x86_64"]) {
        return;
    }
    let net = Net::new();
    let ns = net.client.as_str();
    run("ip", &["-n", ns, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"]);
    run("ip", &["-n", ns, "tuntap", "add", "dev", "tap0", "mode", "tap"]);
    for link in ["c0", "tap0"] {
        run("ip", &["-n", ns, "link", "set", link, "master", "br0", "up"]);
    }
    run("ip", &["-n", ns, "link", "set", "br0", "up"]);
    let appliance = Appliance::start(&net, Files::installed().unwrap()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    let _guest = guest(&net, more);
    until("the firmware's and then iPXE's request", || {
        let seen = appliance.watcher.seen();
        let rom = seen.iter().position(|s| s.stage == Stage::Rom && s.arch == Some(arch))?;
        // A script asked for over HTTP, after the answers to iPXE's own DHCP.
        let asked = seen.iter().skip(rom).filter(|s| s.stage == Stage::Ipxe && s.mac.0 == MAC);
        (asked.count() >= 3).then_some(())
    });
    let addresses: Vec<_> = appliance.watcher.seen().into_iter().map(|s| s.address).collect();
    assert!(addresses.iter().all(|a| *a == addresses[0]), "one address all the way: {addresses:?}");
    let about =
        ["OVMF 2022.11 (QEMU 7.2, virtio-net without ROM), then Debian's snponly.efi (iPXE 2019)", "INIT twice"];
    keep(name, &about, &tap.seen());
}

fn guest(net: &Net, more: &[&str]) -> Running {
    let vars = net.path("vars.fd");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).unwrap();
    let vars = format!("if=pflash,format=raw,unit=1,file={}", vars.display());
    let args = [
        ["-accel", "tcg,tb-size=64"],
        ["-machine", "q35"],
        ["-uuid", "4c575231-0077-4000-8000-000000000001"],
        ["-m", "256"],
        ["-display", "none"],
        ["-serial", "null"],
        ["-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"],
        ["-drive", &vars],
        ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"],
        ["-device", "virtio-net-pci,netdev=n0,mac=52:54:00:77:00:01,romfile=,bootindex=1"],
    ];
    let args = [&["-nodefaults", "-no-reboot"], more, &args.concat()[..]].concat();
    Running(net.client("qemu-system-x86_64", &args).spawn().unwrap())
}

#[test]
#[ignore = "loader.rs boots this way too; kept for its fixture"]
fn uefi_http_boot() {
    let no = |name: &str| format!("name=opt/org.tianocore/{name},string=no");
    let (v4, v6) = (no("IPv4PXESupport"), no("IPv6PXESupport"));
    boots("ovmf-http", ClientArch::HttpX64, &["-fw_cfg", &v4, "-fw_cfg", &v6]);
}

#[test]
#[ignore = "delivery.rs boots this way too; kept for its fixture"]
fn uefi_pxe_boot() {
    boots("ovmf-pxe", ClientArch::UefiX64, &[]);
}
