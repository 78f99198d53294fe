//! Container images made by hand, as `docker save` and OCI tools write them, flattened and laid ready for a recipe.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rackline::error::Error;
use rackline::image::container::archive::Sha256;
use rackline::image::container::{self, Flattened, LIMIT, preload, waiting};
use rackline::image::recipe::Recipe;
use rackline::image::{Cache, Catalogue, adopt, build};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::image_import::sh;

struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, mode: u32, link: &str, text: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(3_000_000);
        header.set_mtime(1_700_000_000);
        header.set_size(text.len() as u64);
        // As bytes: the library would refuse what a forger writes.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, text).unwrap();
        self
    }

    fn folder(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, 0o755, "", b"")
    }

    fn file(self, name: &str, text: &[u8]) -> Self {
        self.add(EntryType::Regular, name, 0o4755, "", text)
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Symlink, name, 0o777, to, b"")
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Link, name, 0o644, to, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|l| Sha256::of(l).to_string()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-11-20T10:00:00Z",
        "config": { "Cmd": ["/bin/app"], "Env": ["A=b"] }, "rootfs": { "type": "layers", "diff_ids": ids },
        "history": ids.iter().map(|_| json!({ "created_by": "RUN x" })).collect::<Vec<_>>(),
    });
    serde_json::to_vec(&config).unwrap()
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files.iter().fold(Layer::new(), |archive, (name, bytes)| archive.file(name, bytes)).bytes()
}

/// What `docker save` writes.
fn saved(layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let config = config(layers, "amd64");
    let name = format!("{}.json", Sha256::of(&config).hex());
    let path = |n: usize| format!("{n}/layer.tar");
    let layers_named: Vec<String> = (0..layers.len()).map(path).collect();
    let manifest = json!([{ "Config": name, "RepoTags": ["team/app:1.2"], "Layers": layers_named }]);
    let mut files: Vec<_> = layers.iter().enumerate().map(|(n, layer)| (path(n), layer.clone())).collect();
    files.push((name, config));
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    files
}

/// An OCI layout; each layer is packed by this.
fn layout(layers: &[Vec<u8>], pack: impl Fn(usize, &[u8]) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut blobs = Vec::new();
    let mut blob = |bytes: Vec<u8>| {
        let digest = Sha256::of(&bytes);
        let about = json!({ "digest": digest.to_string(), "size": bytes.len() });
        blobs.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        about
    };
    let about_config = blob(config(layers, "amd64"));
    let about_layers: Vec<Value> = layers.iter().enumerate().map(|(n, layer)| blob(pack(n, layer))).collect();
    let manifest = json!({ "schemaVersion": 2, "config": about_config, "layers": about_layers });
    let mut about = blob(manifest.to_string().into_bytes());
    about["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    about["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    about["annotations"] = json!({ "io.containerd.image.name": "team/app:1.2" });
    let index = json!({ "schemaVersion": 2, "manifests": [about] });
    blobs.push(("index.json".into(), index.to_string().into_bytes()));
    blobs
}

/// As much of a system as tells what it is.
fn system(about: &str, programs: &[&str]) -> Vec<u8> {
    let etc = Layer::new().folder("etc").file("etc/os-release", about.as_bytes());
    programs.iter().fold(etc, |layer, name| layer.file(name, b"")).bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

struct Site {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        Self { dir, cache }
    }

    fn recipe(&self) -> Recipe {
        Recipe::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("images"), "docker").unwrap()
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("image");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn preload(&self, source: &Path, limit: u64) -> Result<Flattened, Error> {
        preload(&container::Options { source, tag: None, recipe: &self.recipe(), cache: &self.cache, limit }, &())
    }

    fn refused(&self, bytes: &[u8]) -> Error {
        let error = self.preload(&self.file(bytes), 4 << 20).unwrap_err();
        assert!(waiting(&self.cache, "docker").unwrap().is_empty(), "an archive is left");
        assert_eq!(fs::read_dir(self.cache.folder("tmp").unwrap()).unwrap().count(), 0, "work is left");
        error
    }
}

/// Thirteen layers, each of which changes what the ones before it made.
fn thirteen() -> Vec<Vec<u8>> {
    let base = Layer::new()
        .folder("./")
        .folder("bin/")
        .file("bin/app", &[7; 300_000])
        .hard_link("bin/app2", "bin/app")
        .folder("usr/")
        .folder("usr/lib/")
        .symlink("lib", "usr/lib")
        .folder("etc/")
        .file("etc/gone", b"secret")
        .folder("cache/")
        .file("cache/old", b"old")
        .add(EntryType::Char, "dev-null", 0o666, "", b"");
    let mut layers = vec![base.bytes()];
    for n in 1..12 {
        let layer = Layer::new().folder("etc/").file("etc/version", format!("{n}").as_bytes());
        layers.push(layer.file(&format!("lib/part-{n}"), &vec![n; 20_000]).bytes());
    }
    let last = Layer::new().file("etc/.wh.gone", b"").folder("cache/").file("cache/.wh..wh..opq", b"");
    layers.push(last.file("cache/new", b"new").bytes());
    layers
}

#[test]
fn thirteen_layers_become_one() {
    let site = Site::new();
    let before = site.recipe().key;
    let done = site.preload(&site.file(&gzip(&archive(&saved(&thirteen())))), LIMIT).unwrap();
    assert_eq!((done.layers, done.devices, done.tag.as_str()), (13, 1, "team/app:1.2"));
    assert!(done.after < done.before);

    // Read by another tar: names, kinds, modes, owners, content.
    let out = site.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    sh(&out, &format!("tar -xf '{}'; mkdir root; tar -tvf */layer.tar > list", done.archive.display()));
    sh(&out, "tar -xf */layer.tar -C root");
    let found = sh(&out.join("root"), "find . -mindepth 1 -printf '%P %y %m %l\\n' | LC_ALL=C sort");
    let mut expected: Vec<String> = (1..12).map(|n| format!("usr/lib/part-{n} f 4755 ")).collect();
    expected.extend(
        ["bin d 755 ", "bin/app f 4755 ", "bin/app2 f 4755 ", "cache d 755 ", "cache/new f 4755 "].map(str::to_owned),
    );
    expected.extend(
        ["etc d 755 ", "etc/version f 4755 ", "lib l 777 usr/lib", "usr d 755 ", "usr/lib d 755 "].map(str::to_owned),
    );
    expected.sort();
    assert_eq!(String::from_utf8(found.stdout).unwrap().lines().collect::<Vec<_>>(), expected);
    assert_eq!(fs::read(out.join("root/etc/version")).unwrap(), b"11");
    let list = fs::read_to_string(out.join("list")).unwrap();
    assert!(list.contains("bin/app2 link to bin/app") && list.contains("1000/3000000"), "{list}");

    // Docker finds what it looks for, and the digests are those of the files.
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest[0]["RepoTags"], json!(["team/app:1.2"]));
    let config = fs::read(out.join(manifest[0]["Config"].as_str().unwrap())).unwrap();
    assert_eq!(manifest[0]["Config"], format!("{}.json", Sha256::of(&config).hex()));
    let config: Value = serde_json::from_slice(&config).unwrap();
    let layer = fs::read(out.join(manifest[0]["Layers"][0].as_str().unwrap())).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([Sha256::of(&layer).to_string()]));
    assert_eq!(config["config"], json!({ "Cmd": ["/bin/app"], "Env": ["A=b"] }));
    assert_eq!(config["history"].as_array().unwrap().len(), 1);

    // The recipe is another one with it, and the same again with the same.
    let with = || {
        let mut recipe = site.recipe();
        recipe.bring_along(waiting(&site.cache, "docker").unwrap()).unwrap();
        recipe.key
    };
    let first = with();
    assert_ne!(first, before);

    // The same image as OCI layout, in a folder and in an archive, gives the same bytes.
    let one = fs::read(&done.archive).unwrap();
    let layout = layout(&thirteen(), |n, layer| match n % 3 {
        0 => zstd::encode_all(layer, 1).unwrap(),
        1 => gzip(layer),
        _ => layer.to_vec(),
    });
    let folder = site.dir.path().join("layout");
    for (name, bytes) in &layout {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
    for source in [folder, site.file(&archive(&layout))] {
        let again = site.preload(&source, LIMIT).unwrap();
        assert_eq!(again.archive, done.archive);
        assert_eq!(fs::read(&again.archive).unwrap(), one, "{}", source.display());
    }
    assert_eq!(with(), first);
    assert_eq!(fs::read_dir(site.cache.folder("tmp").unwrap()).unwrap().count(), 0);
}

#[test]
fn forged_and_damaged_containers_are_refused() {
    let site = Site::new();
    let good = || vec![Layer::new().folder("a").file("a/b", b"text").bytes()];
    let one = |layer: Layer| archive(&saved(&[layer.bytes()]));
    for layer in [
        Layer::new().file("../../etc/passwd", b"x"),
        Layer::new().file("/etc/passwd", b"x"),
        Layer::new().hard_link("a", "../../etc/shadow"),
        Layer::new().symlink("a", "a").file("a/b", b"x"),
        Layer::new().add(EntryType::GNUSparse, "a", 0o644, "", b""),
        // A name of 2 MiB.
        Layer::new().add(EntryType::GNULongName, "././@LongLink", 0, "", &vec![b'n'; 2 << 20]).file("n", b""),
    ] {
        let error = site.refused(&one(layer));
        assert_eq!(error.code(), "image.container", "{error:?}");
    }
    // What a link leads to outside is not touched: it is a link within the container.
    let linked = one(Layer::new().symlink("out", "../../../../../tmp").file("out/rackline-forged", b"x"));
    site.preload(&site.file(&linked), LIMIT).unwrap();
    assert!(!Path::new("/tmp/rackline-forged").exists());
    fs::remove_file(&waiting(&site.cache, "docker").unwrap()[0]).unwrap();

    // 64 MiB of zeros in 64 KB.
    let bomb = vec![Layer::new().file("zero", &vec![0; 64 << 20]).bytes()];
    assert_eq!(site.refused(&archive(&layout(&bomb, |_, l| gzip(l)))).code(), "image.size");

    // One byte of each part, in turn.
    for kind in [saved(&good()), layout(&good(), |_, l| gzip(l))] {
        for part in 0..kind.len() {
            let mut changed = kind.clone();
            let name = kind[part].0.clone();
            let middle = changed[part].1.len() / 2;
            changed[part].1[middle] ^= 1;
            if name != "manifest.json" && name != "index.json" {
                let error = site.refused(&archive(&changed));
                assert!(["image.digest", "image.container"].contains(&error.code()), "{name}: {error:?}");
            }
            let error = site.refused(&archive(&kind.iter().filter(|(n, _)| *n != name).cloned().collect::<Vec<_>>()));
            assert_eq!(error.code(), "image.container", "without {name}");
        }
    }
    let whole = archive(&saved(&good()));
    for length in [100, 600, 1500, 2600, whole.len() - 2600] {
        assert_eq!(site.refused(&whole[..length]).code(), "image.container", "{length} of {}", whole.len());
    }
    assert_eq!(site.refused(b"no archive at all").code(), "image.container");
    let mut two = saved(&good());
    let manifest: Vec<Value> = serde_json::from_slice(&two.last().unwrap().1).unwrap();
    two.last_mut().unwrap().1 = serde_json::to_vec(&[&manifest[0], &manifest[0]]).unwrap();
    assert!(site.refused(&archive(&two)).message().contains("2 images"));

    let arm = config(&good(), "arm64");
    let name = format!("{}.json", Sha256::of(&arm).hex());
    let manifest = json!([{ "Config": name, "RepoTags": null, "Layers": ["0/layer.tar"] }]).to_string();
    let files =
        [(name, arm), ("0/layer.tar".into(), good().remove(0)), ("manifest.json".into(), manifest.into_bytes())];
    assert!(site.refused(&archive(&files)).message().contains("arm64"));
}

#[test]
fn a_container_onto_a_full_disk_leaves_nothing() {
    let site = Site::new();
    let noise = (0..6_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>();
    let source = site.dir.path().join("image.tar");
    File::create(&source).unwrap().write_all(&archive(&saved(&[Layer::new().file("noise", &noise).bytes()]))).unwrap();
    let script = format!(
        "mkdir -p small
         unshare -m sh -euc '
             mount -t tmpfs -o size=12m tmpfs small
             if {} image --cache small import image.tar --as container --recipes {}/images 2> said; then exit 9; fi
             find small/tmp small/containers -mindepth 1 -type f 2> /dev/null || true'",
        env!("CARGO_BIN_EXE_rackline"),
        env!("CARGO_MANIFEST_DIR")
    );
    assert_eq!(String::from_utf8_lossy(&sh(site.dir.path(), &script).stdout), "", "something is left");
    let said = fs::read_to_string(site.dir.path().join("said")).unwrap();
    assert!(said.contains("error: the disk is full"), "{said}");
}

#[test]
fn a_container_without_debian_and_apt_is_no_host() {
    let site = Site::new();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let key = site.cache.signing_key().unwrap();
    let refused = |file: &[u8], name: &str| {
        let source = site.file(file);
        assert!(container::is_archive(&source));
        let (cache, key) = (&site.cache, &key);
        let build = build::Options { recipes: &recipes, name, cache, key, mirror: None, refresh: true, snapshot: None };
        let error =
            adopt::adopt(&adopt::Options { source: &source, roles: &[], limit: 4 << 20, build }, &()).unwrap_err();
        assert!(Catalogue::open(&site.cache.folder("images").unwrap(), &[key.public()]).unwrap().images.is_empty());
        let left = fs::read_dir(site.cache.root().join("tmp")).into_iter().flatten().count();
        assert_eq!(left, 0, "work is left");
        error
    };
    let alpine = vec![system("PRETTY_NAME=\"Alpine Linux v3.22\"\nID=alpine\n", &["sbin/apk"])];
    for file in [archive(&saved(&alpine)), gzip(&archive(&saved(&alpine))), archive(&layout(&alpine, |_, l| gzip(l)))] {
        let error = refused(&file, "app");
        assert_eq!(error.code(), "image.container-system");
        assert!(error.message().contains("Alpine Linux v3.22"), "{error}");
    }
    // An upper layer takes the package manager away.
    let debian = system("ID=debian\nVERSION_CODENAME=bookworm\n", &["usr/bin/apt-get", "usr/bin/dpkg"]);
    let distroless = vec![debian, Layer::new().file("usr/bin/.wh.apt-get", b"").bytes()];
    assert!(refused(&archive(&saved(&distroless)), "app").message().contains("no /usr/bin/apt-get"));
    assert!(refused(&archive(&saved(&thirteen())), "app").message().contains("no operating system"));
    assert_eq!(refused(&archive(&saved(&alpine)), "../app").code(), "image.name");
    assert_eq!(refused(&archive(&[("rootfs/a".into(), vec![1])]), "app").code(), "image.container");
    let forged = Layer::new().file("../../etc/passwd", b"x").bytes();
    assert_eq!(refused(&archive(&saved(&[forged])), "app").code(), "image.container");
    assert!(!container::is_archive(&site.file(&[0; 4096])), "a disk");
}

/// By the program itself: Debian in two layers becomes a disk, and boots.
#[test]
#[ignore = "bootstraps Debian, installs a kernel and boots by BIOS and UEFI: ten minutes"]
fn debian_in_a_container_becomes_a_host() {
    let site = Site::new();
    let folder = site.dir.path();
    sh(
        folder,
        "apt-config dump | grep -E '^Acquire::https?' > settings || true
         mmdebstrap --mode=root --variant=minbase --aptopt=settings bookworm base.tar",
    );
    let above = Layer::new().file("etc/motd", b"from a container").file("etc/.wh.debian_version", b"").bytes();
    let layers = [fs::read(folder.join("base.tar")).unwrap(), above];
    fs::write(folder.join("image.tar"), archive(&saved(&layers))).unwrap();
    let rackline = env!("CARGO_BIN_EXE_rackline");
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let said = sh(
        folder,
        &format!(
            "{rackline} image --cache cache import image.tar --name adopted --recipes {}
             {rackline} image --cache cache test adopted",
            recipes.display()
        ),
    );
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("left out, since it means nothing to a host: Cmd, Env"), "{said}");
}

/// What the host runs at its first boot, with a `docker` that notes what it is told and fails at the second archive.
#[test]
fn the_host_loads_what_the_image_brought_along() {
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir bin archives; touch archives/a.tar archives/b.tar
         printf '#!/bin/sh\\necho \"$@\" >> told\\ncase $* in *b.tar) [ -e again ] || { touch again; exit 1; } ;; esac\\n' > bin/docker
         chmod 755 bin/docker",
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/images/docker/files/usr/lib/rackline/load-containers");
    let run = || {
        let path = format!("{}:/usr/bin:/bin", dir.path().join("bin").display());
        Command::new(script).arg("archives").current_dir(dir.path()).env("PATH", path).status().unwrap().success()
    };
    let left = || fs::read_dir(dir.path().join("archives")).unwrap().count();
    assert_eq!((run(), left()), (false, 1));
    assert_eq!((run(), left()), (true, 0));
    assert!(run(), "nothing to load is no fault");
    let told = fs::read_to_string(dir.path().join("told")).unwrap();
    assert_eq!(told.lines().map(|l| l.rsplit('/').next().unwrap()).collect::<Vec<_>>(), ["a.tar", "b.tar", "b.tar"]);
}
