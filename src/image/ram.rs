//! The RAM system: Debian's kernel and an initramfs with busybox, drivers, tools with their libraries, and the agent.
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

/// Builds into the folder `out`, from a root directory with the recipe's packages.
pub fn build(tools: &Tools, recipe: &Recipe, ram: &Ram, root: &Path, out: &Path, work: &Path) -> Result<()> {
    let failed = |e| super::disk_full(e, "making the RAM system");
    let kernel = Kernel::find(root)?;
    let stage = work.join("stage");
    tools.step("choosing drivers")?;
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var", "root", "mnt"] {
        fs::create_dir_all(stage.join(folder)).map_err(failed)?;
    }
    copy_modules(tools, &kernel.release, &ram.modules, root, &stage)?;
    copy_programs(tools, ram, root, &stage)?;
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
    fs::copy(root.join(kernel.image().trim_start_matches('/')), out.join("vmlinuz")).map_err(failed)?;
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
        paths.extend(shown.lines().filter_map(module_path));
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

/// Lines are `insmod /path/to/name.ko`, options behind it, and `builtin name`.
fn module_path(line: &str) -> Option<PathBuf> {
    let path = line.strip_prefix("insmod ")?;
    Some(path.find(".ko ").map_or(path.trim(), |end| &path[..end + 3]).into())
}

/// Programs go to `/bin`, the only folder of the search path; data and libraries to where programs look for them.
fn copy_programs(tools: &Tools, ram: &Ram, root: &Path, stage: &Path) -> Result<()> {
    let mut copies = BTreeSet::new();
    for program in &ram.programs {
        let from = root.join(program.trim_start_matches('/'));
        let lacks = || format!("the packages of the RAM system have no {program}, which it wants");
        let wants_loader = interpreter(&from).or_fail(Kind::Config, "image.program", lacks)?;
        let name = Path::new(program).file_name().unwrap_or_default();
        copies.insert((from, stage.join("bin").join(name)));
        if let Some(loader) = wants_loader {
            for library in libraries(tools, root, &loader, program)?.into_iter().chain([loader]) {
                let within = library.trim_start_matches('/');
                copies.insert((root.join(within), stage.join(within)));
            }
        }
    }
    for file in &ram.files {
        let within = file.trim_start_matches('/');
        copies.insert((root.join(within), stage.join(within)));
    }
    for (from, to) in copies {
        let lacks = || format!("the packages of the RAM system have no {}, which it wants", from.display());
        to.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| super::disk_full(e, "copying programs"))?;
        // Links are followed: a library's name of one version, `lvm` under its other names.
        fs::copy(&from, &to).or_fail(Kind::Config, "image.program", lacks)?;
    }
    Ok(())
}

/// What starts the program, as ELF's segment of type INTERP says (System V ABI, chapter 5); none if it is static.
fn interpreter(program: &Path) -> io::Result<Option<String>> {
    const INTERP: u64 = 3;
    let bytes = fs::read(program)?;
    let number = |at: u64, len: u64| -> u64 {
        let range = usize::try_from(at).ok().zip(usize::try_from(at.saturating_add(len)).ok());
        let field = range.and_then(|(from, to)| bytes.get(from..to)).unwrap_or_default();
        field.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
    };
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::Error::other("it is not a program for this architecture"));
    }
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut segments = (0..count).map(|n| table.saturating_add(n * size));
    let Some(segment) = segments.find(|&segment| number(segment, 4) == INTERP) else { return Ok(None) };
    let (offset, len) = (number(segment.saturating_add(8), 8), number(segment.saturating_add(32), 8));
    let text = bytes.iter().skip(offset as usize).take(len as usize).take_while(|byte| **byte != 0);
    Ok(Some(text.map(|byte| char::from(*byte)).collect()))
}

/// The libraries of a program, as the new system's own loader finds them: by its rules, in its folders.
fn libraries(tools: &Tools, root: &Path, loader: &str, program: &str) -> Result<Vec<String>> {
    let mut list = Command::new("chroot");
    let shown = tools.output("coreutils", list.arg(root).args([loader, "--list", program]))?;
    parse_libraries(&shown).map_err(|missing| {
        Error::config("image.program", format!("{program} needs {missing}, which no package brought"))
            .hint("add the package to the recipe of the RAM system")
    })
}

/// Lines are `name => /path (address)`, `name => not found`, and for what has no file `name (address)`.
fn parse_libraries(shown: &str) -> std::result::Result<Vec<String>, String> {
    let found = shown.lines().filter_map(|line| line.trim().split_once(" => "));
    found
        .map(|(name, place)| match place.split(" (").next() {
            Some(path) if path.starts_with('/') => Ok(path.to_owned()),
            _ => Err(name.to_owned()),
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_in_spite_of_its_options() {
        assert_eq!(module_path("insmod /a b/net.ko max_bonds=0 "), Some("/a b/net.ko".into()));
        assert_eq!(module_path("insmod /a b/md.ko.xz "), Some("/a b/md.ko.xz".into()));
        assert_eq!(module_path("builtin unix"), None);
    }

    #[test]
    fn what_starts_a_program_is_read_from_it() {
        assert_eq!(interpreter(Path::new("/bin/busybox")).unwrap(), None, "Debian's busybox-static");
        assert_eq!(interpreter(Path::new("/bin/ls")).unwrap().as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        for cut in [0, 5, 40, 63, 64, 100, 200, 700] {
            fs::write(&path, &fs::read("/bin/ls").unwrap()[..cut]).unwrap();
            let _ = interpreter(&path);
        }
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(interpreter(&path).is_err());
    }

    #[test]
    fn a_program_comes_with_its_libraries() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::new("agent", dir.path().join("log"), &()).unwrap();
        let ram = Ram {
            modules: Vec::new(),
            programs: vec!["/bin/ls".into(), "/bin/busybox".into()],
            files: vec!["/etc/debian_version".into()],
        };
        let stage = dir.path().join("stage");
        fs::create_dir_all(stage.join("bin")).unwrap();
        copy_programs(&tools, &ram, Path::new("/"), &stage).unwrap();
        // It starts where nothing else is.
        let mut ls = Command::new("chroot");
        let listed = tools.output("coreutils", ls.arg(&stage).args(["/bin/ls", "/bin", "/etc"])).unwrap();
        assert_eq!(
            listed.split_whitespace().collect::<Vec<_>>(),
            ["/bin:", "busybox", "ls", "/etc:", "debian_version"]
        );

        let lacks = Ram { programs: vec!["/bin/no-such".into()], ..ram };
        assert_eq!(copy_programs(&tools, &lacks, Path::new("/"), &stage).unwrap_err().code(), "image.program");
        assert_eq!(
            parse_libraries("\tlinux-vdso.so.1 (0x7)\n\tliba.so.1 => /lib/liba.so.1 (0x7)\n\t/lib64/ld.so (0x7)\n"),
            Ok(vec!["/lib/liba.so.1".into()])
        );
        assert_eq!(parse_libraries("\tliba.so.1 => not found\n"), Err("liba.so.1".into()));
    }
}
