//! Builds that go wrong, and who may build: a small system is put together by the real program from a layer that is there
//! already, so that no mirror is needed and each takes seconds. Needs root.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rackline::image::recipe::Recipe;
use rackline::image::{Cache, Catalogue, Entry};

use crate::fixture::noise;
use crate::image_import::sh;
use crate::net::{can_run, until};

const RACKLINE: &str = env!("CARGO_BIN_EXE_rackline");
const NAME: &str = "small";

/// A folder with the recipe `small`, which runs `script`, and a cache with the layer that it extends.
struct Site(tempfile::TempDir);

impl Site {
    fn new(script: &str) -> Self {
        Self::within(Path::new(env!("CARGO_TARGET_TMPDIR")), script)
    }

    fn within(folder: &Path, script: &str) -> Self {
        let dir = tempfile::tempdir_in(folder).unwrap();
        let put = |path: &str, text: &[u8]| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let layer = "kind = \"layer\"\ndescription = \"What others extend\"\nsuite = \"bookworm\"\n";
        put("recipes/least/recipe.toml", layer.as_bytes());
        let disk = "kind = \"disk\"\ndescription = \"A small system\"\nextends = \"least\"\nscripts = [\"script.sh\"]\n\
                    [disk]\nesp-mib = 34\nfree-mib = 64\n";
        put("recipes/small/recipe.toml", disk.as_bytes());
        put("recipes/small/script.sh", script.as_bytes());
        let site = Self(dir);
        site.put_layer();
        site
    }

    fn layer(&self) -> PathBuf {
        let key = Recipe::load(&self.recipes(), "least").unwrap().key;
        self.cache().join(format!("layers/least-{}", key.short()))
    }

    /// As `least` would leave it: packages in the words of dpkg, a mirror's date, a kernel, and a shell for the script.
    fn put_layer(&self) {
        let root = self.layer();
        for folder in
            ["bin", "boot", "dev", "etc/apt", "proc", "root", "run", "sys", "tmp", "usr/sbin", "var/log", "var/tmp"]
        {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let put = |path: &str, text: &[u8]| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        put("var/lib/apt/lists/mirror_Release", b"Date: Sat, 21 Nov 2026 08:00:00 UTC\n");
        let package = "Package: busybox\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n\
                       Maintainer: nobody <nobody@example.org>\nDescription: all programs in one\n";
        put("var/lib/dpkg/status", package.as_bytes());
        put("var/lib/dpkg/info/busybox.list", b"/bin/busybox\n");
        put("boot/vmlinuz-6.1.0-1-amd64", &noise("a kernel", 6 << 20));
        put("boot/initrd.img-6.1.0-1-amd64", &noise("an initramfs", 2 << 20));
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for program in ["sh", "chown", "sleep", "touch", "rm"] {
            symlink("busybox", root.join("bin").join(program)).unwrap();
        }
    }

    fn recipes(&self) -> PathBuf {
        self.0.path().join("recipes")
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(RACKLINE);
        command.args(["image", "build", NAME, "--recipes"]).arg(self.recipes()).arg("--cache").arg(self.cache());
        command
    }

    /// What is being made, by anybody.
    fn at_work(&self) -> Vec<PathBuf> {
        let tmp = fs::read_dir(self.cache().join("tmp")).into_iter().flatten();
        tmp.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    fn images(&self) -> Vec<Entry> {
        let cache = Cache::open(&self.cache()).unwrap();
        let trusted = [cache.signing_key().unwrap().public()];
        Catalogue::open(&cache.folder("images").unwrap(), &trusted).unwrap().images
    }
}

#[test]
fn a_full_disk_ends_the_build_and_leaves_nothing() {
    if !can_run(&["unshare", "mmdebstrap"]) {
        return;
    }
    let site = Site::new("touch /done\n");
    // From where not even the layer can be copied to where all but the last bytes fit.
    let script = format!(
        "mv cache layers
         unshare -m sh -euc '
             mkdir cache; mount -t tmpfs tmpfs cache; cp -a layers/. cache/
             used=$(($(df -k --output=used cache | tail -1)))
             step=2
             while mount -o remount,size=$((used + step * 1024))k cache &&
                 ! {RACKLINE} image --cache cache build small --recipes recipes 2>> said; do
                 find cache/tmp cache/images -mindepth 1 2> /dev/null || true
                 step=$((step + 4))
                 [ $step -lt 200 ] || exit 9
             done
             echo $step MiB; ls cache/images; find cache/tmp -mindepth 1'"
    );
    let output = sh(site.0.path(), &script);
    let said = fs::read_to_string(site.0.path().join("said")).unwrap();
    let output = String::from_utf8_lossy(&output.stdout);
    let [size, image] = output.lines().collect::<Vec<_>>()[..] else { panic!("something is left: {output}") };
    let tries: u32 = size.strip_suffix(" MiB").unwrap().parse::<u32>().unwrap() / 4;
    let full: Vec<&str> = said.lines().filter(|line| line.starts_with("error: the disk is full")).collect();
    assert_eq!(full.len() as u32, tries, "{said}");
    assert_eq!(said.matches("error: ").count(), full.len(), "{said}");
    // Not each time at the same place.
    assert!(full.iter().collect::<std::collections::BTreeSet<_>>().len() > 2, "{full:?}");
    assert!(image.starts_with("small-20261121-"), "{image}");
}

#[test]
fn a_build_goes_on_where_another_one_was_killed() {
    if !can_run(&["unshare", "mmdebstrap"]) {
        return;
    }
    let site = Site::new("touch /begun; until [ -e /go ]; do sleep 0.05; done; rm /begun /go\n");
    let said = site.0.path().join("said");
    let build = || site.command().stderr(File::create(&said).unwrap()).spawn().unwrap();
    let begun = |other: Option<&Path>| {
        until("the script to run", || {
            site.at_work().into_iter().find(|w| Some(w.as_path()) != other && w.join("root/begun").exists())
        })
    };
    let mut first = build();
    let work = begun(None);
    let mut second = build();
    let waits = || fs::read_to_string(&said).unwrap().contains("waiting for another build");
    until("the second build to wait", || waits().then_some(()));
    assert_eq!(site.at_work(), [work.as_path()], "one at a time");
    // What is younger may belong to a build that is just beginning.
    File::open(work.with_extension("lock")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    first.kill().unwrap();
    first.wait().unwrap();

    let other = begun(Some(&work));
    assert!(!work.exists(), "what the first one left");
    fs::write(other.join("root/go"), "").unwrap();
    assert!(second.wait().unwrap().success(), "{}", fs::read_to_string(&said).unwrap());
    assert_eq!(site.images().len(), 1);
    assert_eq!(fs::read_dir(site.cache().join("tmp")).unwrap().count(), 0);
    // Its tools are gone with it, and so is what they mounted.
    let name = work.file_name().unwrap().to_str().unwrap();
    until("the tools of the first build to end", || (!running(name)).then_some(()));
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(name));
}

fn running(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(word))
}

/// The same image, bit by bit, though the files of the new system belong to several users. And who may not, is told why.
#[test]
fn a_normal_user_builds_in_a_namespace() {
    if !can_run(&["unshare", "mmdebstrap", "newuidmap"]) {
        return;
    }
    // Where everybody can get at it.
    let site = Site::within(&std::env::temp_dir(), "touch /owned; chown 33:44 /owned\n");
    // As mmdebstrap leaves it where it may.
    let node = site.layer().join("dev/null");
    sh(site.0.path(), &format!("mknod {} c 1 3", node.display()));
    let built = site.command().output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let by_root = site.images().remove(0).digest;
    fs::remove_dir_all(site.cache().join("images")).unwrap();
    fs::remove_file(node).unwrap();

    let script = format!(
        "cp {RACKLINE} program
         cp /etc/passwd /etc/group .
         echo builder:x:4242:4242::/:/bin/sh >> passwd; echo builder:x:4242: >> group
         echo builder:700000:65536 > ids; echo builder:700000:1000 > few; : > none
         chown -R 4242:4242 .
         build() {{ unshare -m sh -euc '
             mount --bind passwd /etc/passwd; mount --bind group /etc/group
             mount --bind $1 /etc/subuid; mount --bind $1 /etc/subgid; eval \"$2\"
             exec setpriv --reuid 4242 --regid 4242 --clear-groups \\
                 ./program image --cache cache build small --recipes recipes' sh $1 \"${{2-:}}\"; }}
         for ids in none few; do ! build $ids 2>> said; done
         ! build ids 'mount --bind none /usr/bin/newuidmap' 2>> said
         build ids"
    );
    let output = Command::new("sh").args(["-euc", &script]).current_dir(site.0.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = site.images().remove(0);
    assert_eq!(image.digest, by_root);
    assert_eq!(fs::metadata(&image.data).unwrap().uid(), 4242);
    let said = fs::read_to_string(site.0.path().join("said")).unwrap();
    assert_eq!(said.matches("usermod --add-subuids").count(), 2, "{said}");
    assert_eq!(said.matches("apt-get install uidmap").count(), 1, "{said}");
}
