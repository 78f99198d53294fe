//! `rackline image test`: an image of `make images` passes and is proved; one that cannot boot fails with the cause by name.
//! Needs QEMU and built images.

use std::path::Path;
use std::process::Command;

use rackline::image::proof::{self, Proof};
use rackline::image::{Cache, Catalogue, Entry};
use rackline::lab::trial::{Trial, restore, run};
use rackline::machine::Firmware;

/// The smallest image of the cache.
fn ovs(cache: &Cache) -> Entry {
    let trusted = [cache.signing_key().unwrap().public()];
    let catalogue = Catalogue::open(&cache.folder("images").unwrap(), &trusted).unwrap();
    catalogue.resolve("ovs").unwrap().clone()
}

fn built() -> Cache {
    Cache::open(&Cache::default_root().unwrap()).unwrap()
}

#[test]
fn an_image_that_boots_and_does_its_work_is_proved() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let image = ovs(&built());
    // A cache of its own, so that the proof is made here and now.
    let copy =
        |from: &Path, to: &Path| assert!(Command::new("cp").arg("-R").args([from, to]).status().unwrap().success());
    copy(image.signed.parent().unwrap(), &cache.folder("images").unwrap());
    copy(&built().root().join("signing.key"), cache.root());
    let (image, trusted) = (ovs(&cache), [cache.signing_key().unwrap().public()]);
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        Proof::withdraw(&image, firmware).unwrap();
    }

    let output = Command::new(env!("CARGO_BIN_EXE_rackline"))
        .args(["image", "test", "ovs", "--firmware", "bios", "--cache"])
        .arg(cache.root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let proof = Proof::load(&image, Firmware::Bios, &trusted).unwrap();
    let passed = |id: &str| proof.checks.iter().any(|c| c.id.starts_with(id));
    assert!(passed("disk.grown") && passed("services") && passed("ovs"), "{:?}", proof.checks);
    // It is made for UEFI, too, and that has not been shown.
    assert!(proof::require(&image, &trusted).unwrap_err().message().contains("by UEFI"));
    assert_eq!(std::fs::read_dir(cache.folder("tmp").unwrap()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_an_image_from_booting_is_named() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, disk) = (ovs(&built()), dir.path().join("disk"));
    for (damage, code) in [
        ("dd if=/dev/zero of=\"$0\" bs=512 count=1 conv=notrunc status=none", "image.test-loader"),
        ("debugfs -wR 'rm /boot/grub/grub.cfg' \"$0?offset=$1\"", "image.test-loader"),
        ("for link in vmlinuz vmlinuz.old; do debugfs -wR \"rm /$link\" \"$0?offset=$1\"; done", "image.test-kernel"),
    ] {
        restore(&image, &disk, &|_| {}).unwrap();
        let done = Command::new("sh").args(["-c", damage]).arg(&disk).arg(root_offset(&disk)).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let trial =
            Trial { entry: &image, firmware: Firmware::Bios, disk: &disk, work: dir.path(), binary: b"is not started" };
        let error = run(&trial, &|_| {}).await.unwrap_err();
        assert_eq!(error.code(), code, "{damage}: {error} {:?}", error.causes());
    }
}

/// Where the third partition begins, in bytes.
fn root_offset(disk: &Path) -> String {
    let output = Command::new("sfdisk").arg("-J").arg(disk).output().unwrap();
    let table: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let start = table["partitiontable"]["partitions"][2]["start"].as_u64().unwrap();
    (start * 512).to_string()
}
