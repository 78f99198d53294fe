//! Disk images of other makers: small ones that are laid out as a vendor's cloud image, in every format.
//!
//! Root is needed for XFS (the kernel mounts it) and for the full disk (a tmpfs of its own).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use rackline::error::Error;
use rackline::image::import::{Imported, Options, import};
use rackline::image::inspect::disk::Disk;
use rackline::image::lint::{Expected, Level};
use rackline::image::{Cache, Catalogue, Entry, Progress, SigningKey, Step};
use rackline::machine::{Firmware, Role};

const MIB: u64 = 1 << 20;
const KERNEL: &str = "6.1.0-56-amd64";

pub fn sh(folder: &Path, script: &str) -> Output {
    let output = Command::new("sh").args(["-euc", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The root of a system as far as anybody looks: kernel, boot menu, cloud-init, modules, programs.
pub fn root(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    let put = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("etc/os-release", "NAME=Test\nPRETTY_NAME=\"Testing GNU/Linux 1 (small)\"\n");
    put("etc/machine-id", "");
    put("etc/shadow", "root:*:19000:0:99999:7:::\ndaemon:!:19000::::::\n");
    put("etc/cloud/cloud.cfg", "users: []\n");
    put("etc/cloud/cloud.cfg.d/90_dpkg.cfg", "datasource_list: [ NoCloud, ConfigDrive, None ]\n");
    put("usr/bin/cloud-init", "#!/usr/bin/python3\n");
    put("usr/bin/growpart", "#!/bin/sh\n");
    put("usr/sbin/resize2fs", "#!/bin/sh\n");
    put(&format!("boot/vmlinuz-{KERNEL}"), &"k".repeat(3_000_000));
    put("boot/vmlinuz-6.1.0-9-amd64", "older");
    put(&format!("boot/initrd.img-{KERNEL}"), "i");
    put("boot/grub/grub.cfg", "menuentry x {\n linux /boot/vmlinuz root=UUID=1 ro quiet\n initrd /x\n}\n");
    let drivers =
        ["ahci", "nvme", "megaraid_sas", "mpt3sas", "smartpqi", "aacraid", "hpsa", "sd_mod", "tg3", "bnxt_en"]
            .into_iter()
            .chain(["bnx2x", "igb", "e1000e", "ixgbe", "i40e", "ice", "mlx4_core", "mlx5_core", "qede", "sfc"]);
    let modules: String = drivers.map(|d| format!("kernel/drivers/{d}.ko.xz: kernel/lib/x.ko\n")).collect();
    put(&format!("lib/modules/{KERNEL}/modules.dep"), &modules);
    put(&format!("lib/modules/{KERNEL}/modules.builtin"), "kernel/fs/ext4/ext4.ko\n");
    put("usr/bin/env", "");
    let mut elf = vec![0u8; 64];
    elf[..4].copy_from_slice(b"\x7fELF");
    elf[18] = 0x3e;
    fs::write(root.join("usr/bin/env"), elf).unwrap();
    root
}

/// Laid out as Debian's cloud image: root is partition 1 and last on the disk, 14 and 15 are for the boot loaders.
pub fn disk(folder: &Path, root: &Path) -> PathBuf {
    let disk = folder.join("disk.raw");
    File::create(&disk).unwrap().set_len(48 * MIB).unwrap();
    fs::write(
        folder.join("table"),
        "label: gpt\nfirst-lba: 2048\n\
         14: start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n\
         15: start=2MiB, size=4MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         1: start=6MiB, size=40MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
    )
    .unwrap();
    let script = format!(
        "sfdisk -q disk.raw < table
         mke2fs -q -F -t ext4 -L cloudimg-rootfs -d '{}' -E offset={} disk.raw 40M
         mkfs.vfat --offset 4096 -n ESP disk.raw 4096 > /dev/null
         printf x > loader
         mmd -i disk.raw@@2M ::/EFI ::/EFI/BOOT
         mcopy -i disk.raw@@2M loader ::/EFI/BOOT/BOOTX64.EFI",
        root.display(),
        6 * MIB
    );
    sh(folder, &script);
    let file = File::options().write(true).open(&disk).unwrap();
    let mut boot = fs::read("/usr/lib/grub/i386-pc/boot.img").unwrap();
    boot.truncate(440);
    boot[0x5c..0x64].copy_from_slice(&2048u64.to_le_bytes());
    file.write_all_at(&boot, 0).unwrap();
    file.write_all_at(b"core", MIB).unwrap();
    disk
}

fn stock(folder: &Path) -> PathBuf {
    disk(folder, &root(folder))
}

pub fn take(
    cache: &Cache,
    file: &Path,
    name: &str,
    expected: &Expected,
    force: Option<&str>,
) -> Result<Imported, Error> {
    let key = cache.signing_key().unwrap();
    import(&Options { file, name, roles: &[Role::Kvm], cache, key: &key, expected, force }, &())
}

fn refused(cache: &Cache, file: &Path) -> Error {
    let error = take(cache, file, "x", &Expected::default(), None).unwrap_err();
    nothing_left(cache);
    error
}

fn nothing_left(cache: &Cache) {
    assert_eq!(fs::read_dir(cache.folder("tmp").unwrap()).unwrap().count(), 0, "work is left");
    assert_eq!(fs::read_dir(cache.folder("images").unwrap()).unwrap().count(), 0, "an image is left");
}

#[test]
fn import_of_every_format_gives_the_same_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    let raw = stock(dir.path());
    // Names say nothing, or what QEMU would take for a protocol or options.
    let script = "qemu-img convert -f raw -O qcow2 -c disk.raw a.iso
        qemu-img convert -f raw -O vmdk disk.raw b.raw
        qemu-img convert -f raw -O vmdk -o subformat=streamOptimized disk.raw c
        qemu-img convert -f raw -O vhdx disk.raw nbd:127.0.0.1:9
        qemu-img convert -f raw -O vpc -o force_size=on disk.raw e
        qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on disk.raw f
        zstd -q disk.raw -o g
        gzip -c disk.raw > h
        xz -0 -c disk.raw > 'json:{\"driver\":\"null-co\"}'";
    sh(dir.path(), &script.replace("disk.raw nbd:", "disk.raw file:nbd:"));
    let whole = take(&cache, &raw, "stock", &Expected::default(), None).unwrap();
    let m = &whole.entry.manifest;
    assert_eq!(m.firmware, [Firmware::Bios, Firmware::Uefi]);
    assert_eq!(
        (m.arch.as_str(), m.boot.root_label.as_str(), m.boot.release.as_str()),
        ("amd64", "cloudimg-rootfs", KERNEL)
    );
    assert_eq!(m.boot.command_line, "root=UUID=1 ro quiet");
    assert_eq!(m.labels["description"], "imported: Testing GNU/Linux 1 (small)");
    assert_eq!(whole.findings, [], "{:?}", whole.findings);
    for (file, format) in [
        ("a.iso", "qcow2"),
        ("b.raw", "vmdk"),
        ("c", "vmdk"),
        ("nbd:127.0.0.1:9", "vhdx"),
        ("e", "vpc"),
        ("f", "vpc"),
        ("g", "raw.zst"),
        ("h", "raw.gz"),
        ("json:{\"driver\":\"null-co\"}", "raw.xz"),
    ] {
        let imported = take(&cache, &dir.path().join(file), "stock", &Expected::default(), None);
        let imported = imported.unwrap_or_else(|e| panic!("{file}: {e:?}"));
        assert_eq!(imported.format, format);
        assert_eq!(imported.entry.manifest.chunks, m.chunks, "{format}");
        imported.entry.verify(&|_| {}).unwrap();
    }
    assert_eq!(fs::read_dir(cache.folder("tmp").unwrap()).unwrap().count(), 0);
}

#[test]
fn import_refuses_what_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    stock(dir.path());
    sh(
        dir.path(),
        "for f in qcow2 vmdk vhdx vpc; do qemu-img convert -f raw -O $f disk.raw t.$f; done
         zstd -q disk.raw -o t.zst; gzip -c disk.raw > t.gz; xz -0 -c disk.raw > t.xz; cp disk.raw t.raw
         for f in t.*; do truncate -s $(($(stat -c %s $f) * 2 / 3 / 512 * 512)) $f; done",
    );
    for kind in ["qcow2", "vmdk", "vhdx", "vpc", "zst", "gz", "xz", "raw"] {
        let error = refused(&cache, &dir.path().join(format!("t.{kind}")));
        assert!(["image.truncated", "image.gpt"].contains(&error.code()), "{kind}: {error:?}");
    }
    fs::write(dir.path().join("empty"), "").unwrap();
    assert_eq!(refused(&cache, &dir.path().join("empty")).code(), "image.size");
}

#[test]
fn import_refuses_what_needs_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    stock(dir.path());
    sh(
        dir.path(),
        "qemu-img convert -f raw -O qcow2 disk.raw base.qcow2
         qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 backing.qcow2
         qemu-img create -q -f qcow2 -o data_file=data.bin data.qcow2 8M
         qemu-img create -q -f vmdk -o subformat=monolithicFlat flat.vmdk 8M
         qemu-img convert -f raw -O vmdk disk.raw base.vmdk
         qemu-img create -q -f vmdk -b base.vmdk -F vmdk parent.vmdk
         qemu-img create -q -f qcow2 luks.qcow2 8M",
    );
    // Its header says that it is encrypted by LUKS. (qemu-img gives up making one where the machine is busy.)
    let luks = File::options().write(true).open(dir.path().join("luks.qcow2")).unwrap();
    luks.write_all_at(&2u32.to_be_bytes(), 32).unwrap();
    for (file, code, named) in [
        ("backing.qcow2", "image.other-file", "\"base.qcow2\""),
        ("data.qcow2", "image.other-file", "external data file"),
        ("flat.vmdk", "image.other-file", "VMDK descriptor"),
        ("parent.vmdk", "image.other-file", "parent disk"),
        ("luks.qcow2", "image.encrypted", "encrypted"),
    ] {
        let error = refused(&cache, &dir.path().join(file));
        assert_eq!(error.code(), code, "{file}: {error:?}");
        assert!(error.message().contains(named), "{error}");
    }
    // Headers that promise what no disk has.
    let huge = dir.path().join("huge.qcow2");
    sh(dir.path(), "cp base.qcow2 huge.qcow2");
    File::options().write(true).open(&huge).unwrap().write_all_at(&(1u64 << 50).to_be_bytes(), 24).unwrap();
    assert_eq!(refused(&cache, &huge).code(), "image.size");
    // An MBR is told from no table at all.
    sh(dir.path(), "truncate -s 16M mbr; echo 'start=2048, type=83' | sfdisk -q -X dos mbr; truncate -s 16M none");
    assert_eq!(refused(&cache, &dir.path().join("mbr")).code(), "image.mbr");
    assert_eq!(refused(&cache, &dir.path().join("none")).code(), "image.gpt");
    sh(dir.path(), "tar -cf a.tar table");
    assert_eq!(refused(&cache, &dir.path().join("a.tar")).code(), "image.format");
}

#[test]
fn lint_finds_what_was_left_inside() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    let root = root(dir.path());
    sh(
        &root,
        "mkdir -p etc/ssh root/.ssh home/me/.ssh var/lib/cloud/instances/i-1 var/lib/systemd
         echo key > etc/ssh/ssh_host_ed25519_key; echo 4f2c > etc/machine-id
         echo 'me:$6$salt$hash:19000::::::' >> etc/shadow
         echo 'ssh-ed25519 AAAA me' > root/.ssh/authorized_keys
         echo '-----BEGIN OPENSSH PRIVATE KEY-----' > home/me/.ssh/id_ed25519
         echo ls > root/.bash_history; echo x > var/lib/systemd/random-seed
         echo 'datasource_list: [Ec2]' > etc/cloud/cloud.cfg.d/99_ec2.cfg
         rm usr/bin/growpart boot/initrd.img-*",
    );
    let raw = disk(dir.path(), &root);
    let expected =
        Expected { drivers: vec![("igb".into(), 3), ("atlantic".into(), 2)], smallest_disk: Some(8 * MIB), seed: 0 };
    let error = take(&cache, &raw, "dirty", &expected, None).unwrap_err();
    assert_eq!(error.code(), "image.lint");
    nothing_left(&cache);

    let imported = take(&cache, &raw, "dirty", &expected, Some("a test")).unwrap();
    let codes = |level| imported.findings.iter().filter(|f| f.level == level).map(|f| f.code).collect::<Vec<_>>();
    let errors = [
        "boot.initrd",
        "cloud-init.datasource",
        "drivers.fleet",
        "secret.host-key",
        "secret.machine-id",
        "secret.password",
        "secret.authorized",
        "secret.ssh-key",
        "secret.instance",
        "size.disk",
    ];
    assert_eq!(codes(Level::Error), errors);
    assert_eq!(codes(Level::Warning), ["grow.partition", "secret.history", "secret.random-seed"]);
    let fleet = imported.findings.iter().find(|f| f.code == "drivers.fleet").unwrap();
    assert!(fleet.sentence.contains("atlantic") && fleet.sentence.contains("2 of our machines"), "{}", fleet.sentence);
    assert_eq!(imported.entry.manifest.labels["forced"], "a test");

    // The image of the catalogue is read without unpacking it, and says the same.
    let catalogue =
        Catalogue::open(&cache.folder("images").unwrap(), &[cache.signing_key().unwrap().public()]).unwrap();
    let disk = Disk::packed(catalogue.resolve("dirty").unwrap()).unwrap();
    let system = rackline::image::inspect::System::find(&disk).unwrap();
    assert_eq!(rackline::image::lint::check(&disk, &system, &expected).unwrap(), imported.findings);
}

#[test]
fn import_reads_xfs_with_a_boot_partition_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    let root = root(dir.path());
    // As Rocky has it: ESP, /boot in ext4 with Boot Loader Specification entries, root in XFS; UEFI only.
    fs::create_dir_all(root.join("boot/loader/entries")).unwrap();
    fs::write(
        root.join("boot/loader/entries/a.conf"),
        "title Rocky\nlinux /vmlinuz\noptions root=/dev/x ro no_timer_check\n",
    )
    .unwrap();
    fs::remove_dir_all(root.join("boot/grub")).unwrap();
    std::os::unix::fs::symlink("../usr/lib/os-release", root.join("etc/release-link")).unwrap();
    fs::write(
        dir.path().join("table"),
        "label: gpt\nstart=1MiB, size=4MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         start=5MiB, size=20MiB, type=BC13C2FF-59E6-4262-A352-B275FD6F7172\nstart=25MiB, size=320MiB\n",
    )
    .unwrap();
    sh(
        dir.path(),
        "mv root/boot boot; mkdir root/boot
         truncate -s 346M disk.raw; sfdisk -q disk.raw < table
         mkfs.vfat --offset 2048 disk.raw 4096 > /dev/null; printf x > loader
         mmd -i disk.raw@@1M ::/EFI ::/EFI/BOOT; mcopy -i disk.raw@@1M loader ::/EFI/BOOT/BOOTX64.EFI
         mke2fs -q -F -t ext4 -d boot -E offset=5242880 disk.raw 20M
         truncate -s 320M xfs; mkfs.xfs -q -L rocky xfs; mkdir m
         unshare -m sh -euc 'mount -o loop xfs m; cp -a root/. m/; umount m'
         dd if=xfs of=disk.raw bs=1M seek=25 conv=notrunc,sparse status=none; rm xfs",
    );
    let imported = take(&cache, &dir.path().join("disk.raw"), "rocky", &Expected::default(), None).unwrap();
    let m = &imported.entry.manifest;
    assert_eq!((m.boot.root_label.as_str(), m.boot.release.as_str()), ("rocky", KERNEL));
    assert_eq!(m.boot.command_line, "root=/dev/x ro no_timer_check");
    assert_eq!(m.firmware, [Firmware::Uefi]);
    let codes: Vec<_> = imported.findings.iter().map(|f| f.code).collect();
    assert_eq!(codes, ["boot.bios"]);
    // The kernel takes a mount namespace apart some time after its last process is gone.
    let ours = dir.path().display().to_string();
    let left = || {
        let loops = sh(dir.path(), "losetup --list --noheadings --output BACK-FILE");
        String::from_utf8_lossy(&loops.stdout).contains(&ours)
    };
    let gone = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        !left()
    });
    assert!(gone, "a loop device is left");
}

#[test]
fn import_onto_a_full_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    sh(&root, "head -c 20000000 /dev/urandom > noise");
    disk(dir.path(), &root);
    let script = format!(
        "qemu-img convert -f raw -O qcow2 disk.raw d.qcow2; gzip -c disk.raw > d.gz; mkdir cache
         unshare -m sh -euc '
             mount -t tmpfs -o size=12m tmpfs cache
             for f in disk.raw d.qcow2 d.gz; do
                 if {} image --cache cache import $f --name x --role kvm 2>> said; then exit 9; fi
                 find cache/tmp cache/images -mindepth 1 2> /dev/null || true
             done'",
        env!("CARGO_BIN_EXE_rackline")
    );
    let output = sh(dir.path(), &script);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "something is left");
    let said = fs::read_to_string(dir.path().join("said")).unwrap();
    assert_eq!(said.matches("error: the disk is full").count(), 3, "{said}");
}

#[test]
fn import_ends_by_ctrl_c_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    sh(&root, "head -c 20000000 /dev/urandom > noise");
    disk(dir.path(), &root);
    let script = format!(
        "gzip -1 -c disk.raw > d.gz
         {} image --cache cache import d.gz --name x --role kvm 2> said &
         while ! grep -q 'x: ' said; do sleep 0.01; done; kill -INT $!
         wait $! && exit 9; find cache/tmp cache/images -mindepth 1 2> /dev/null",
        env!("CARGO_BIN_EXE_rackline")
    );
    let output =
        Command::new("bash").args(["-uc", &format!("set -m; {script}")]).current_dir(dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "something is left");
    let said = fs::read_to_string(dir.path().join("said")).unwrap();
    assert!(said.contains("error: the build of x was stopped"), "{said}");
}

#[test]
fn the_second_import_of_a_name_waits_for_the_first() {
    /// Lets the import start to wait, then stops it.
    struct Watch(AtomicBool);
    impl Progress for Watch {
        fn step(&self, step: &Step) {
            self.0.fetch_or(step.what.contains("waiting for another"), Ordering::SeqCst);
        }
        fn stopped(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let tools = rackline::image::tool::Tools::new("x", cache.log("x"), &()).unwrap();
    let _held = cache.lock(&tools, "x").unwrap();
    let key = cache.signing_key().unwrap();
    let expected = Expected::default();
    let options = Options {
        file: Path::new("/dev/null"),
        name: "x",
        roles: &[],
        cache: &cache,
        key: &key,
        expected: &expected,
        force: None,
    };
    let watch = Watch(AtomicBool::new(false));
    assert_eq!(import(&options, &watch).unwrap_err().code(), "image.stopped");
    assert!(watch.0.load(Ordering::SeqCst));
}

/// An image that was built here, brought into the form of a cloud image, is taken for what it is.
#[test]
#[ignore = "needs an image that was built before: `rackline image build ovs`"]
fn image_import_of_one_of_our_own_gives_its_bytes() {
    let built = Cache::open(&Cache::default_root().unwrap()).unwrap();
    let keys = ["signing.key", "test.key"].map(|k| SigningKey::load_or_create(&built.root().join(k)).unwrap().public());
    let catalogue = Catalogue::open(&built.folder("images").unwrap(), &keys).unwrap();
    let ours = catalogue.resolve("ovs").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let packed = Disk::packed(ours).unwrap();
    let raw = File::create(dir.path().join("disk.raw")).unwrap();
    raw.set_len(packed.size()).unwrap();
    for chunk in &ours.manifest.chunks {
        let mut bytes = vec![0; chunk.raw_length as usize];
        packed.read_at(chunk.disk_offset, &mut bytes).unwrap();
        raw.write_all_at(&bytes, chunk.disk_offset).unwrap();
    }
    sh(dir.path(), "qemu-img convert -f raw -O qcow2 -c disk.raw image; rm disk.raw");
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    let begin = std::time::Instant::now();
    let imported = take(&cache, &dir.path().join("image"), "ovs", &Expected::default(), None).unwrap();
    let (a, b) = (&ours.manifest, &imported.entry.manifest);
    println!("{} MiB of {} in {:?}; {:?}", b.data_size >> 20, imported.format, begin.elapsed(), imported.findings);
    assert_eq!(imported.format, "qcow2");
    // Whatever the size of chunks was when ours was built.
    let content = |entry: &Entry| {
        let disk = Disk::packed(entry).unwrap();
        let mut hasher = blake3::Hasher::new();
        for at in (0..disk.size()).step_by(MIB as usize) {
            hasher.update(&disk.bytes(at, MIB.min(disk.size() - at) as usize).unwrap().unwrap());
        }
        hasher.finalize()
    };
    assert_eq!(content(ours), content(&imported.entry));
    assert_eq!((a.disk_size, &a.arch, &a.firmware), (b.disk_size, &b.arch, &b.firmware));
    assert_eq!((&a.boot.release, &a.boot.root_label), (&b.boot.release, &b.boot.root_label));
    assert_eq!((&a.boot.kernel, &a.boot.initrd), (&b.boot.kernel, &b.boot.initrd));
}
