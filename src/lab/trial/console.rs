//! What a machine's serial console shows: how far the boot is, and what went wrong.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Of the console, in an error.
const LAST_LINES: usize = 12;

/// What is printed where it can go no further: code, text on the console, cause. By SeaBIOS; OVMF; GRUB 2 (`grub-core`:
/// `normal/main.c`, `kern/rescue_reader.c`, `loader/i386/linux.c`); Linux; initramfs-tools; systemd.
const FAULTS: &[(&str, &str, &str)] = &[
    ("image.test-loader", "No bootable device", "the firmware finds nothing to boot on the disk"),
    ("image.test-loader", "Boot failed: not a bootable disk", "the firmware finds nothing to boot on the disk"),
    ("image.test-loader", "BdsDxe: failed to load Boot", "the firmware cannot start the boot loader on the disk"),
    ("image.test-loader", "BdsDxe: No bootable option", "the firmware finds nothing to boot on the disk"),
    ("image.test-loader", "grub rescue>", "GRUB does not find its own files"),
    (
        "image.test-kernel",
        "you need to load the kernel first",
        "GRUB does not find the kernel that its configuration names",
    ),
    ("image.test-kernel", "Failed to boot both default and fallback", "GRUB can start none of its entries"),
    ("image.test-loader", "grub>", "GRUB has no configuration, or one that starts nothing"),
    ("image.test-panic", "Kernel panic - not syncing", "the kernel panics"),
    ("image.test-root", "ALERT!", "the initramfs does not find the root file system"),
    ("image.test-root", "(initramfs)", "the initramfs does not find the root file system"),
    ("image.test-boot", "You are in emergency mode", "systemd gave up and is in emergency mode"),
];

/// What is printed on the way, the furthest last.
const STEPS: &[(&str, &str)] = &[
    ("GRUB", "the boot loader runs"),
    ("Loading, please wait", "the kernel runs"),
    ("Linux version", "the kernel runs"),
    ("Welcome to", "the system starts"),
    ("login:", "the system is up, waiting for its agent"),
];

pub struct Console {
    path: PathBuf,
    text: String,
    step: Option<usize>,
}

impl Console {
    pub fn new(path: PathBuf) -> Self {
        Self { path, text: String::new(), step: None }
    }

    /// Reads on. A step that is new, or the fault that ends it.
    pub fn look(&mut self) -> Result<Option<&'static str>> {
        self.read();
        if let Some((code, _, cause)) = FAULTS.iter().find(|(_, sign, _)| self.text.contains(sign)) {
            return Err(self.explain(Error::refused(code, *cause)));
        }
        let furthest = STEPS.iter().rposition(|(sign, _)| self.text.contains(sign));
        if furthest <= self.step {
            return Ok(None);
        }
        let before = self.step.and_then(|i| STEPS.get(i)).map(|(_, step)| *step);
        self.step = furthest;
        let now = furthest.and_then(|i| STEPS.get(i)).map(|(_, step)| *step);
        Ok(now.filter(|now| Some(*now) != before))
    }

    fn read(&mut self) {
        // There is none until QEMU has started.
        self.text = plain(&fs::read(&self.path).unwrap_or_default());
    }

    /// Nothing came within the time: what is the last thing that worked?
    pub fn too_late(&mut self, within: Duration) -> Error {
        self.read();
        let seen = |sign: &str| self.text.contains(sign);
        let minutes = within.as_secs() / 60;
        let (code, what) = if seen("login:") {
            ("image.test-agent", "it boots, but its agent does not finish: look at cloud-init and the network")
        } else if seen("Welcome to") || seen("Linux version") || seen("Loading, please wait") {
            ("image.test-boot", "the kernel starts, but the system does not come up")
        } else {
            ("image.test-loader", "no kernel is started")
        };
        self.explain(Error::refused(code, format!("{what}; given up after {minutes} minutes")))
    }

    /// The same error with the last lines of the console.
    pub fn explain(&self, error: Error) -> Error {
        let lines: Vec<&str> = self.text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n");
        match last.is_empty() {
            true => error.because("the console shows nothing"),
            false => error.because(format!("the console's last lines:\n{last}")),
        }
    }
}

/// Without what moves the cursor and sets colours (ECMA-48 section 5.4), and with line ends as they are here.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                if chars.next_if_eq(&'[').is_some() {
                    // Parameters and intermediates, then one final character.
                    while chars.next_if(|c| (' '..='?').contains(c)).is_some() {}
                    // A jump to another line is the end of this one.
                    if chars.next().is_some_and(|end| end == 'H') && !out.ends_with('\n') {
                        out.push('\n');
                    }
                } else {
                    chars.next();
                }
            }
            '\n' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> (tempfile::NamedTempFile, Console) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let console = Console::new(file.path().to_owned());
        (file, console)
    }

    #[test]
    fn causes_have_names() {
        for (text, code) in [
            ("Booting from Hard Disk...\r\nNo bootable device.\r\n", "image.test-loader"),
            ("BdsDxe: failed to load Boot0001 \"UEFI QEMU NVMe\": Not Found", "image.test-loader"),
            ("error: file `/vmlinuz' not found.\nerror: you need to load the kernel first.\n", "image.test-kernel"),
            ("GNU GRUB  version 2.06\r\n\x1b[4;1Hgrub> ", "image.test-loader"),
            ("[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs", "image.test-panic"),
            ("ALERT!  LABEL=root does not exist.  Dropping to a shell!", "image.test-root"),
        ] {
            let (_file, mut console) = console(text);
            let error = console.look().unwrap_err();
            assert_eq!(error.code(), code, "{text}");
            assert!(error.causes().join("\n").contains("last lines"), "{error:?}");
        }
    }

    #[test]
    fn each_step_is_told_once() {
        let (file, mut console) = console("");
        assert_eq!(console.look().unwrap(), None);
        fs::write(file.path(), "Loading, please wait...\r\n").unwrap();
        assert_eq!(console.look().unwrap(), Some("the kernel runs"));
        fs::write(file.path(), "Loading, please wait...\nLinux version 6.1\n").unwrap();
        assert_eq!(console.look().unwrap(), None);
        fs::write(file.path(), "Welcome to \x1b[1mDebian\x1b[0m\nlocalhost login: ").unwrap();
        assert_eq!(console.look().unwrap(), Some("the system is up, waiting for its agent"));
        assert_eq!(console.too_late(BOOT).code(), "image.test-agent");
    }

    const BOOT: Duration = Duration::from_secs(60);

    #[test]
    fn silence_has_a_cause_too() {
        let (_file, mut console) = console("");
        let error = console.too_late(BOOT);
        assert_eq!(error.code(), "image.test-loader");
        assert_eq!(error.causes(), ["the console shows nothing"]);
    }

    #[test]
    fn colours_and_jumps_are_no_text() {
        assert_eq!(plain(b"\x1b[0;32m  OK  \x1b[0m\r\n\x1b7\x1b[2;1HGRUB\x07"), "  OK  \nGRUB");
    }
}
