//! Where the kernel's files are. In production always the usual places; tests put trees of their own here.

use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq)]
pub struct Roots {
    pub sys: PathBuf,
    pub proc: PathBuf,
    pub dev: PathBuf,
    /// What an agent that is started again must know: in memory, gone with the boot.
    pub run: PathBuf,
    /// What an installed host keeps from boot to boot.
    pub state: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
            run: "/run/rackline".into(),
            state: "/var/lib/rackline".into(),
        }
    }
}

impl Roots {
    /// The kernel's own files, not a test's: only then can devices be asked by ioctl.
    pub fn live(&self) -> bool {
        self.sys == std::path::Path::new("/sys")
    }

    /// `/proc/sys/kernel/random/boot_id`: another one after each boot.
    pub fn boot_id(&self) -> Option<uuid::Uuid> {
        let text = std::fs::read_to_string(self.proc.join("sys/kernel/random/boot_id")).ok()?;
        uuid::Uuid::parse_str(text.trim()).ok()
    }

    /// Seconds since the kernel started; 0 where it does not say.
    pub fn uptime(&self) -> f64 {
        let text = std::fs::read_to_string(self.proc.join("uptime")).unwrap_or_default();
        text.split_whitespace().next().and_then(|s| s.parse().ok()).unwrap_or_default()
    }
}
