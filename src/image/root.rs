//! Root directories: bootstrapped by mmdebstrap, extended by apt, finished for being copied to many hosts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::recipe::{Recipe, walk};
use super::snapshot::Snapshot;
use super::tool::Tools;
use crate::error::{Error, Kind, OrFail, Result};

/// Part of every recipe's key: what these scripts do decides what is built.
pub const SCRIPTS: &str = concat!(include_str!("inside.sh"), include_str!("finish.sh"));

/// Where packages come from.
pub struct Sources {
    /// One-line entries of sources.list.
    pub lines: Vec<String>,
    /// This machine's settings for the way to the mirror, in the syntax of apt.conf.
    pub settings: String,
}

impl Sources {
    /// A mirror by its URL; without one, what this machine itself uses for that suite.
    pub fn find(tools: &Tools, suite: &str, mirror: Option<&str>) -> Result<Self> {
        let dump = tools.output("apt", Command::new("apt-config").arg("dump"))?;
        let ways = ["Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-Valid-Until"];
        let mut settings: String =
            dump.lines().filter(|line| ways.iter().any(|way| line.starts_with(way))).flat_map(|l| [l, "\n"]).collect();
        settings.push_str(
            "Dir::Etc::netrc \"/etc/apt/auth.conf\";\nDir::Etc::netrcparts \"/etc/apt/auth.conf.d/\";\n\
             Acquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n",
        );
        let lines = match mirror {
            Some(url) if url.contains("://") && !url.contains(char::is_whitespace) => {
                vec![format!("deb {url} {suite} main")]
            }
            Some(url) => {
                return Err(Error::input("image.mirror", format!("{url:?} is not the URL of a mirror"))
                    .hint("write it as http://deb.debian.org/debian"));
            }
            None => host_sources(Path::new("/etc/apt"), suite),
        };
        Ok(Self { lines, settings })
    }
}

impl Sources {
    /// From here on only the versions of the snapshot are installed.
    pub fn pin(&mut self, snapshot: &Snapshot, work: &Path) -> Result<()> {
        let path = work.join("preferences");
        write(&path, &snapshot.preferences())?;
        self.settings.push_str(&format!("Dir::Etc::preferences \"{}\";\n", path.display()));
        Ok(())
    }
}

impl Sources {
    /// For a root that others made: apt takes from it neither sources, keys nor settings, which may name programs that it
    /// runs on this machine.
    pub fn alone(&mut self, work: &Path) -> Result<()> {
        let path = work.join("sources.list");
        write(&path, &(self.lines.join("\n") + "\n"))?;
        self.settings.push_str(&format!(
            "Dir::Etc::sourcelist \"{}\";\nDir::Etc::trusted \"/etc/apt/trusted.gpg\";\n\
             Dir::Etc::trustedparts \"/etc/apt/trusted.gpg.d/\";\n",
            path.display()
        ));
        for part in ["main", "parts", "sourceparts", "preferences", "preferencesparts"] {
            self.settings.push_str(&format!("Dir::Etc::{part} \"/dev/null\";\n"));
        }
        Ok(())
    }
}

/// The entries of this machine for the suite and its updates; Debian's own mirror where there are none.
fn host_sources(etc: &Path, suite: &str) -> Vec<String> {
    let mut files = vec![etc.join("sources.list")];
    let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    let mut lines = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => text.lines().filter_map(one_line).for_each(|entry| lines.extend(entry.of(suite))),
            Some("sources") => text.split("\n\n").filter_map(stanza).for_each(|entry| lines.extend(entry.of(suite))),
            _ => {}
        }
    }
    if !lines.iter().any(|line| line.contains(&format!(" {suite} "))) {
        return vec![
            format!("deb http://deb.debian.org/debian {suite} main"),
            format!("deb http://deb.debian.org/debian {suite}-updates main"),
            format!("deb http://deb.debian.org/debian-security {suite}-security main"),
        ];
    }
    lines.into_iter().collect()
}

struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    signed_by: Option<String>,
}

impl Entry {
    /// One line per URL and suite. Only the component `main` is used: other archives name their suites alike.
    fn of(&self, suite: &str) -> Vec<String> {
        let wanted =
            |s: &&String| s.strip_prefix(suite).is_some_and(|rest| ["", "-updates", "-security"].contains(&rest));
        // Debian's own keyring is in every Debian system, and mmdebstrap finds it by itself.
        let signed = match self.signed_by.as_deref().filter(|key| !key.contains("debian-archive-keyring")) {
            Some(key) => format!("[signed-by={key}] "),
            None => String::new(),
        };
        let suites = self.suites.iter().filter(wanted);
        suites
            .flat_map(|s| self.uris.iter().map(|uri| format!("deb {signed}{uri} {s} main")).collect::<Vec<_>>())
            .collect()
    }
}

fn one_line(line: &str) -> Option<Entry> {
    let mut rest = line.strip_prefix("deb ")?.trim_start();
    let mut signed_by = None;
    if let Some((options, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    words.any(|component| component == "main").then(|| Entry { uris: vec![uri], suites: vec![suite], signed_by })
}

fn stanza(text: &str) -> Option<Entry> {
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.map(|words| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let enabled = field("Enabled").is_none_or(|v| v.iter().all(|v| v == "yes"));
    let binary = field("Types")?.contains(&"deb".to_owned());
    let main = field("Components")?.contains(&"main".to_owned());
    let signed_by = field("Signed-By").and_then(|v| v.into_iter().next()).filter(|path| path.starts_with('/'));
    (enabled && binary && main).then_some(Entry { uris: field("URIs")?, suites: field("Suites")?, signed_by })
}

/// A new root directory from nothing. `debs` is a folder of packages that were fetched before, on the same file system.
pub fn bootstrap(
    tools: &Tools,
    recipe: &Recipe,
    sources: &Sources,
    root: &Path,
    debs: &Path,
    work: &Path,
) -> Result<()> {
    tools.step("bootstrapping Debian")?;
    let settings = work.join("apt-settings");
    write(&settings, &sources.settings)?;
    let files = work.join("files");
    stage_files(recipe, &files)?;
    let quote = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"));
    let (files, debs) = (quote(&files), quote(debs));
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
    command.args(["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--architectures=amd64"]);
    command.args(["--skip=download/empty,cleanup/apt/lists,check/empty", "--dpkgopt=force-unsafe-io"]);
    command.arg(format!("--aptopt={}", settings.display()));
    command.args(recipe.exclude.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    // With `usr-is-merged` instead of `usrmerge`, which would bring Perl along.
    command.args(["--dpkgopt=force-confold", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]);
    command.arg(format!(
        "--setup-hook=mkdir -p \"$1/var/cache/apt/archives/partial\" && \
         find {debs} -maxdepth 1 -name '*.deb' -exec cp -l -t \"$1/var/cache/apt/archives\" {{}} +"
    ));
    // Before the kernel comes: the files say what goes into its initramfs.
    command.arg(format!("--essential-hook=cp -R --preserve=mode,links {files}/. \"$1/\""));
    command.arg(format!(
        "--customize-hook=find \"$1/var/cache/apt/archives\" -maxdepth 1 -name '*.deb' -exec cp -ln -t {debs} {{}} +"
    ));
    command.arg(format!("--include={}", recipe.packages.join(",")));
    command.arg(&recipe.suite).arg(root).args(&sources.lines);
    tools.run("mmdebstrap util-linux", &mut command)?;
    inside(tools, recipe, sources, root, Path::new(&debs.trim_matches('\'')), work, &[])
}

/// A root directory that has its parent's content becomes that of the recipe.
pub fn extend(tools: &Tools, recipe: &Recipe, sources: &Sources, root: &Path, debs: &Path, work: &Path) -> Result<()> {
    let files = work.join(format!("files-{}", recipe.name));
    stage_files(recipe, &files)?;
    let mut copy = Command::new("cp");
    tools.run("coreutils", copy.args(["-R", "--preserve=mode,links", "--"]).arg(files.join(".")).arg(root))?;
    install(tools, recipe, sources, root, debs, work)
}

/// Only packages, scripts and units: what a RAM system takes its programs from.
pub fn install(tools: &Tools, recipe: &Recipe, sources: &Sources, root: &Path, debs: &Path, work: &Path) -> Result<()> {
    tools.step("installing packages")?;
    inside(tools, recipe, sources, root, debs, work, &recipe.packages)
}

/// Packages, scripts and units, with the new root as the root.
fn inside(
    tools: &Tools,
    recipe: &Recipe,
    sources: &Sources,
    root: &Path,
    debs: &Path,
    work: &Path,
    packages: &[String],
) -> Result<()> {
    let config = work.join("apt.conf");
    let text = format!(
        "Apt::Architecture \"amd64\";\nApt::Architectures \"amd64\";\nDir \"{}\";\n{}Dpkg::Use-Pty \"0\";\n\
         Dpkg::Options {{ \"--force-unsafe-io\"; \"--force-confold\"; }};\n",
        root.display(),
        sources.settings
    );
    write(&config, &text)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
    command.args(["sh", "-c", include_str!("inside.sh"), "inside.sh"]);
    command.arg(root).arg(debs).arg(&config).arg(&recipe.folder);
    for list in [packages, &recipe.scripts, &recipe.units.enable] {
        command.arg("--").args(list);
    }
    command.arg("--").args(&recipe.units.mask);
    tools.run("util-linux", &mut command)
}

/// Ready to be copied to many hosts.
pub fn finish(tools: &Tools, root: &Path, epoch: u64) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", include_str!("finish.sh"), "finish.sh"]).arg(root).arg(epoch.to_string());
    tools.run("findutils", &mut command)
}

/// The recipe's files with the modes they shall have: those of a checkout depend on the umask of who made it.
fn stage_files(recipe: &Recipe, stage: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let source = recipe.folder.join("files");
    let failed = || format!("cannot copy {}", source.display());
    let copy = || -> std::io::Result<()> {
        fs::create_dir_all(stage)?;
        fs::set_permissions(stage, fs::Permissions::from_mode(0o755))?;
        if !source.is_dir() {
            return Ok(());
        }
        for (path, about) in walk(&source)? {
            let Ok(within) = path.strip_prefix(&source) else { continue };
            let target = stage.join(within);
            if about.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(&path)?, &target)?;
                continue;
            }
            let executable = about.permissions().mode() & 0o111 != 0;
            if about.is_dir() {
                fs::create_dir(&target)?;
            } else {
                fs::write(&target, fs::read(&path)?)?;
            }
            let mode = if about.is_dir() || executable { 0o755 } else { 0o644 };
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    };
    copy().or_fail(Kind::Config, "image.files", failed)?;
    stage_containers(&recipe.containers, stage)
}

fn stage_containers(archives: &[PathBuf], stage: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = stage.join(super::container::ON_THE_HOST);
    let stage = || -> std::io::Result<()> {
        if !archives.is_empty() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
        }
        for archive in archives {
            // Both lie in the cache.
            fs::hard_link(archive, folder.join(archive.file_name().unwrap_or_default()))?;
        }
        Ok(())
    };
    stage().map_err(|e| super::disk_full(e, "adding the containers"))
}

/// The newest date that the package lists of this root carry, in Unix seconds: no package is younger, and the same
/// lists give the same date. `SOURCE_DATE_EPOCH` overrides it.
pub fn epoch(root: &Path) -> Result<u64> {
    let asked = std::env::var("SOURCE_DATE_EPOCH").ok();
    if let Some(asked) = asked {
        return asked.parse().or_fail(Kind::Input, "image.epoch", || "SOURCE_DATE_EPOCH is not a number of seconds");
    }
    let lists = root.join("var/lib/apt/lists");
    let entries = fs::read_dir(&lists).or_fail(Kind::Internal, "image.epoch", || "the layer has no package lists")?;
    let dates =
        entries.flatten().filter(|e| e.file_name().to_string_lossy().ends_with("Release")).filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            let date = text.lines().find_map(|line| line.strip_prefix("Date: "))?.replace("UTC", "+0000");
            let when = jiff::fmt::rfc2822::parse(&date).ok()?;
            u64::try_from(when.timestamp().as_second()).ok()
        });
    dates.max().ok_or_else(|| Error::internal("image.epoch", "the package lists of the layer carry no date"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| super::disk_full(e, "preparing the build"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_docker_host_brings_along_and_loads() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("team+app@1.tar");
        fs::write(&archive, "layers").unwrap();
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let mut recipe = Recipe::load(&recipes, "docker").unwrap();
        let stage = dir.path().join("without");
        stage_files(&recipe, &stage).unwrap();
        assert!(!stage.join(super::super::container::ON_THE_HOST).exists());

        recipe.bring_along(vec![archive]).unwrap();
        let stage = dir.path().join("with");
        stage_files(&recipe, &stage).unwrap();
        let folder = stage.join(super::super::container::ON_THE_HOST);
        assert_eq!(fs::read_to_string(folder.join("team+app@1.tar")).unwrap(), "layers");
        // The unit is enabled, looks there, and starts what is there.
        let name = "rackline-containers.service";
        assert!(recipe.units.enable.iter().any(|unit| unit == name));
        let unit = fs::read_to_string(stage.join("etc/systemd/system").join(name)).unwrap();
        let value = |key: &str| unit.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix("=/")).unwrap();
        assert_eq!(value("ConditionPathExistsGlob"), format!("{}/*.tar", super::super::container::ON_THE_HOST));
        let script = stage.join(value("ExecStart"));
        assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(
            fs::read_to_string(&script).unwrap().contains(&folder.strip_prefix(&stage).unwrap().display().to_string())
        );
    }

    #[test]
    fn the_sources_of_this_machine_for_one_suite() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        let default = host_sources(dir.path(), "bookworm");
        assert!(default[0].contains("deb.debian.org"));
        let sources = "Types: deb\nURIs: http://m/debian\nSuites: bookworm bookworm-updates trixie\nComponents: main\n\
                       Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                       Types: deb-src\nURIs: http://m/src\nSuites: bookworm\nComponents: main\n";
        fs::write(parts.join("debian.sources"), sources).unwrap();
        let other =
            "deb [arch=amd64 signed-by=/k.gpg] https://docker/linux bookworm stable\n# deb http://x bookworm main\n";
        fs::write(parts.join("docker.list"), other).unwrap();
        fs::write(parts.join("old.list.save"), "deb http://old bookworm main").unwrap();
        fs::write(dir.path().join("sources.list"), "deb [signed-by=/k.gpg] http://s bookworm-security main contrib\n")
            .unwrap();
        assert_eq!(
            host_sources(dir.path(), "bookworm"),
            [
                "deb [signed-by=/k.gpg] http://s bookworm-security main",
                "deb http://m/debian bookworm main",
                "deb http://m/debian bookworm-updates main"
            ]
        );
    }
}
