//! The RAM system: Debian's kernel and an initramfs with busybox, drivers and the agent.
//!
//! The initramfs has two parts, each a compressed cpio archive of its own, which Linux unpacks one after the other: the
//! system by recipe, made seldom, and the agent's binary, which changes with every version of ours.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::Cache;
use super::cpio::Archive;
use super::disk::Kernel;
use super::recipe::{Ram, Recipe};
use super::tool::Tools;
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};

/// Level for the binary: it is compressed while somebody waits, and 9 costs half a second.
const BINARY_LEVEL: i32 = 9;

/// What a recipe of kind `ram` builds: the kernel and the first part of its initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamSystem {
    pub vmlinuz: PathBuf,
    pub base: PathBuf,
    /// A boot loader that starts what is on the first disk that has an EFI system partition, for `chain` of iPXE.
    pub local_efi: PathBuf,
    pub kernel: String,
}

impl RamSystem {
    /// The one that was built last.
    pub fn newest(cache: &Cache) -> Result<Self> {
        let folders = fs::read_dir(cache.folder("ram")?).into_iter().flatten().flatten();
        let age = |e: &fs::DirEntry| e.metadata().and_then(|m| m.modified()).ok();
        let newest = folders.filter(|e| e.path().is_dir()).max_by_key(age);
        let folder = newest.ok_or_else(|| {
            Error::config("image.ram", "the agent's RAM system has not been built").hint("rackline image build agent")
        })?;
        Self::open(&folder.path())
    }

    pub fn open(folder: &Path) -> Result<Self> {
        let about = folder.join("kernel");
        let kernel = fs::read_to_string(&about)
            .or_fail(Kind::NotFound, "image.ram", || format!("there is no RAM system in {}", folder.display()))?;
        let system = Self {
            vmlinuz: folder.join("vmlinuz"),
            base: folder.join("base.zst"),
            local_efi: folder.join("local.efi"),
            kernel: kernel.trim().to_owned(),
        };
        let missing = [&system.vmlinuz, &system.base, &system.local_efi].into_iter().find(|path| !path.is_file());
        if let Some(path) = missing {
            return Err(Error::not_found("image.ram", format!("the RAM system lacks {}", path.display()))
                .hint("rackline image build agent --refresh"));
        }
        Ok(system)
    }
}

/// Builds into the folder `out`, from the root directory of the parent recipe.
pub fn build(tools: &Tools, recipe: &Recipe, ram: &Ram, parent: &Path, out: &Path, work: &Path) -> Result<()> {
    let failed = |e| super::disk_full(e, "making the RAM system");
    let kernel = Kernel::find(parent)?;
    let stage = work.join("stage");
    tools.step("choosing drivers")?;
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var", "root", "mnt"] {
        fs::create_dir_all(stage.join(folder)).map_err(failed)?;
    }
    copy_modules(tools, &kernel.release, &ram.modules, parent, &stage)?;
    copy_programs(ram, parent, &stage)?;
    let mut copy = Command::new("cp");
    copy.args(["-R", "--preserve=mode,links", "--"]).arg(recipe.folder.join("files/.")).arg(&stage);
    tools.run("coreutils", &mut copy)?;

    tools.step("compressing the initramfs")?;
    let cpio = work.join("base.cpio");
    let archive = || -> io::Result<()> {
        let mut archive = Archive::new(io::BufWriter::new(File::create(&cpio)?));
        archive.tree(&stage)?;
        archive.finish()?.flush()
    };
    archive().map_err(failed)?;
    let mut zstd = Command::new("zstd");
    tools.run("zstd", zstd.args(["-q", "-19", "-T0", "-f", "-o"]).arg(out.join("base.zst")).arg(&cpio))?;
    fs::copy(parent.join(kernel.image().trim_start_matches('/')), out.join("vmlinuz")).map_err(failed)?;
    local_efi(tools, &out.join("local.efi"), work)?;
    fs::write(out.join("kernel"), kernel.release + "\n").map_err(failed)
}

/// The modules with all they need, and the tables that find them.
fn copy_modules(tools: &Tools, release: &str, modules: &[String], parent: &Path, stage: &Path) -> Result<()> {
    let failed = |e| super::disk_full(e, "copying drivers");
    let mut paths = BTreeSet::new();
    for module in modules {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(parent).args(["-S", release, "--show-depends", module]);
        let shown = tools.output("kmod", &mut modprobe).map_err(|e| {
            Error::config("image.module", format!("the kernel {release} has no module {module}"))
                .hint("correct the name under [ram] modules in recipe.toml")
                .because(e)
        })?;
        paths.extend(shown.lines().filter_map(|l| l.strip_prefix("insmod ")).map(|l| PathBuf::from(l.trim())));
    }
    let folder = Path::new("lib/modules").join(release);
    let parent_modules = parent.join("usr").join(&folder);
    let target = stage.join(&folder);
    fs::create_dir_all(&target).map_err(failed)?;
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(parent_modules.join(name), target.join(name)).map_err(failed)?;
    }
    for path in paths {
        let Some(within) = path.to_str().and_then(|p| p.split_once(&format!("lib/modules/{release}/"))) else {
            return Err(Error::internal("image.module", format!("{} is not where modules lie", path.display())));
        };
        let target = target.join(within.1);
        target.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        fs::copy(&path, &target).map_err(failed)?;
    }
    tools.run("kmod", Command::new("depmod").arg("-b").arg(stage).arg(release))?;
    // Text tables are for people and for tools that have no binary ones; busybox reads the text, kmod the binary.
    for name in ["modules.alias.bin", "modules.dep.bin", "modules.symbols", "modules.symbols.bin", "modules.devname"] {
        let _ = fs::remove_file(target.join(name));
    }
    Ok(())
}

fn copy_programs(ram: &Ram, parent: &Path, stage: &Path) -> Result<()> {
    for program in &ram.programs {
        let within = program.trim_start_matches('/');
        let target = stage.join("bin").join(Path::new(within).file_name().unwrap_or_default());
        fs::copy(parent.join(within), &target).or_fail(Kind::Config, "image.program", || {
            format!("the layer beneath has no {program}, which the RAM system wants")
        })?;
    }
    Ok(())
}

/// GRUB that leaves the network for the disk. A disk with an EFI system partition is started through its own boot
/// loader, one without by the configuration on its root partition. UEFI iPXE cannot be relied on to `exit` to a disk.
const LOCAL: &str = "\
for esp in (hd*,gpt*); do
    if [ -e $esp/EFI/BOOT/BOOTX64.EFI ]; then
        echo \"Starting the system on $esp\"
        chainloader $esp/EFI/BOOT/BOOTX64.EFI
        boot
    fi
done
search --no-floppy --set=root --label root
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
echo 'No disk here has a system that can be started.'
sleep 10
exit
";

fn local_efi(tools: &Tools, out: &Path, work: &Path) -> Result<()> {
    let config = work.join("local.cfg");
    fs::write(&config, LOCAL).map_err(|e| super::disk_full(e, "making the boot loader"))?;
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", "x86_64-efi", "-p", "/boot/grub", "-c"]).arg(&config).arg("-o").arg(out);
    mkimage.args([
        "part_gpt",
        "part_msdos",
        "fat",
        "ext2",
        "xfs",
        "regexp",
        "search",
        "search_label",
        "configfile",
        "linux",
        "normal",
        "test",
        "echo",
        "sleep",
        "chain",
        "boot",
        "serial",
        "terminal",
        "all_video",
        "efi_gop",
    ]);
    tools.run("grub-efi-amd64-bin", &mut mkimage)
}

/// The initramfs for the agent: the base and, after it, the binary as `/bin/rackline`. Made once for each pair.
pub fn assemble(cache: &Cache, system: &RamSystem, binary: &Path) -> Result<PathBuf> {
    let digest = |path: &Path| -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        let failed = || format!("cannot read {}", path.display());
        hasher.update_reader(File::open(path).or_fail(Kind::NotFound, "image.ram", failed)?).or_fail(
            Kind::Config,
            "image.ram",
            failed,
        )?;
        Ok(hasher.finalize())
    };
    let key = blake3::hash(&[*digest(&system.base)?.as_bytes(), *digest(binary)?.as_bytes()].concat());
    let out = cache.folder("initrd")?.join(format!("{}.zst", &key.to_hex()[..24]));
    if out.is_file() {
        return Ok(out);
    }
    let failed = |e| super::disk_full(e, "adding the agent to the RAM system");
    let work = cache.work("initrd")?;
    let partial = work.path().join("initrd");
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        let base = io::copy(&mut File::open(&system.base)?, &mut file)?;
        // Linux looks for the next archive at a multiple of four (init/initramfs.c, unpack_to_rootfs).
        file.write_all(&[0; 3][..(base.next_multiple_of(4) - base) as usize])?;
        let mut archive = Archive::new(Vec::new());
        archive.file("bin/rackline", true, &fs::read(binary)?)?;
        file.write_all(&zstd::bulk::compress(&archive.finish()?, BINARY_LEVEL)?)?;
        durable::rename(&partial, &out)
    };
    write().map_err(failed)?;
    Ok(out)
}
