//! The files that a setup is on an installed host, whatever the machine: what the kernel and its tools read at each start by
//! themselves. What has no file is set by the agent at each start (`agent/setup/tune.rs`).

use super::Setup;

/// One file, whole; the folders above it are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub path: &'static str,
    pub text: String,
}

const HEAD: &str =
    "# Written by Rackline from the roles of this host; put changes of your own into a file that is read later.\n";
/// Connections in one bucket of the table of connections, on average, when it is full.
const CONNTRACK_BUCKET: u64 = 4;
/// Programs that use select() cannot count further by themselves than 1024; more than this as a default breaks none of ours.
const SOFT_FILES: u64 = 65_536;

/// What is set by sysctl: name and value, in the order of the templates.
pub fn sysctls(setup: &Setup) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut put = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
    for setting in &setup.tuning {
        match setting.name.as_str() {
            "limit.files" => put("fs.nr_open", &setting.value),
            "limit.pids" => {
                put("kernel.pid_max", &setting.value);
                put("kernel.threads-max", &setting.value);
            }
            "conntrack.max" => put("net.netfilter.nf_conntrack_max", &setting.value),
            name => {
                if let Some(name) = name.strip_prefix("sysctl.") {
                    put(name, &setting.value);
                }
            }
        }
    }
    all
}

pub fn files(setup: &Setup) -> Vec<File> {
    let mut files = Vec::new();
    let number = |name: &str| setup.tuned(name).and_then(|v| v.parse::<u64>().ok());
    let why = |name: &str| {
        let why = setup.tuning.iter().find(|s| s.name == name).map(|s| s.why.as_str());
        why.map_or(String::new(), |why| format!("# {}\n", why.replace(['\n', '\r'], " ")))
    };
    if !setup.tuning.is_empty() {
        let mut text = HEAD.to_owned();
        let mut of = String::new();
        for setting in &setup.tuning {
            let one = Setup { tuning: vec![setting.clone()], ..Setup::default() };
            let lines = sysctls(&one);
            if !lines.is_empty() {
                of += &why(&setting.name);
            }
            for (name, value) in lines {
                of += &format!("{name} = {value}\n");
            }
        }
        text += &of;
        files.push(File { path: "/etc/sysctl.d/90-rackline.conf", text });
    }
    if let Some(max) = number("conntrack.max") {
        // Before systemd-sysctl: the sysctl is not there without the module.
        files.push(File { path: "/etc/modules-load.d/rackline.conf", text: format!("{HEAD}nf_conntrack\n") });
        let buckets = max / CONNTRACK_BUCKET;
        let text = format!("{HEAD}{}options nf_conntrack hashsize={buckets}\n", why("conntrack.max"));
        files.push(File { path: "/etc/modprobe.d/rackline.conf", text });
    }
    if let Some(hard) = number("limit.files") {
        let soft = hard.min(SOFT_FILES);
        let text = format!("{HEAD}{}[Manager]\nDefaultLimitNOFILE={soft}:{hard}\n", why("limit.files"));
        files.push(File { path: "/etc/systemd/system.conf.d/90-rackline.conf", text });
    }
    if !setup.storage.is_empty() {
        let discards = u8::from(setup.storage.discard);
        let text = format!(
            "{HEAD}# Blocks that LVM frees are {}handed to the disks: storage.discard of the role.\ndevices {{\n\tissue_discards = {discards}\n}}\n",
            if setup.storage.discard { "" } else { "not " }
        );
        files.push(File { path: "/etc/lvm/lvmlocal.conf", text });
    }
    files
}

#[cfg(test)]
mod tests {
    use super::super::Templates;
    use super::super::disks::tests::storage;
    use super::*;

    #[test]
    fn every_sysctl_has_its_reason_before_it() {
        let mut setup = Templates::default().of(&"kvm+docker+ovs".parse().unwrap()).unwrap().setup;
        setup.storage = storage(
            r#"pool = [{ name = "p", disks = {} }]
               volume = [{ name = "v", pool = "p", size = "rest" }]"#,
        );
        let files = files(&setup);
        let of = |path: &str| files.iter().find(|f| f.path == path).map(|f| f.text.as_str()).unwrap();
        let sysctl = of("/etc/sysctl.d/90-rackline.conf");
        for line in [
            "vm.swappiness = 1",
            "kernel.pid_max = 4194304",
            "net.netfilter.nf_conntrack_max = 1048576",
            "fs.nr_open = 1048576",
        ] {
            assert!(sysctl.lines().any(|l| l == line), "{line}: {sysctl}");
        }
        let lines: Vec<&str> = sysctl.lines().collect();
        assert!(lines.windows(2).any(|w| w[0].starts_with("# ") && w[1] == "vm.dirty_bytes = 1073741824"));
        assert!(of("/etc/modprobe.d/rackline.conf").ends_with("options nf_conntrack hashsize=262144\n"));
        assert!(of("/etc/systemd/system.conf.d/90-rackline.conf").contains("DefaultLimitNOFILE=65536:1048576"));
        assert!(of("/etc/lvm/lvmlocal.conf").contains("issue_discards = 0"));
        assert_eq!(super::files(&Setup::default()), []);
    }

    #[test]
    fn a_reason_cannot_become_a_setting() {
        let setting =
            super::super::Setting { name: "sysctl.a".into(), value: "1".into(), why: "x\nkernel.panic = 1".into() };
        let files = files(&Setup { tuning: vec![setting], ..Setup::default() });
        assert!(!files[0].text.lines().any(|l| l.starts_with("kernel.panic")));
    }
}
