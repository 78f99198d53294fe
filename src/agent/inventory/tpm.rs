//! The TPM: from `/sys/class/tpm` where the kernel drives one, completed by SMBIOS type 43.

use std::path::Path;

use super::{names, value};
use crate::machine::Tpm;

/// What firmware lists and the kernel does not see is switched off there, and is told as firmware lists it.
pub fn read(sys: &Path, listed: Option<Tpm>) -> Option<Tpm> {
    let class = sys.join("class/tpm");
    let seen = names(&class).unwrap_or_default().into_iter().find_map(|name| device(&class.join(name)));
    match (seen, listed) {
        (Some(seen), Some(listed)) => {
            Some(Tpm { vendor: seen.vendor.or(listed.vendor), firmware: seen.firmware.or(listed.firmware), ..seen })
        }
        (seen, listed) => seen.or(listed),
    }
}

fn device(folder: &Path) -> Option<Tpm> {
    if value(&folder.join("tpm_version_major"))? == "2" {
        return Some(Tpm { version: "2.0".into(), vendor: None, firmware: None });
    }
    // `Manufacturer: 0x53544d20`, `TCG version: 1.2`, `Firmware version: 13.12`; only TPM 1.2 has this file.
    let caps = value(&folder.join("device/caps")).or_else(|| value(&folder.join("caps"))).unwrap_or_default();
    let field = |name: &str| caps.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let vendor = field("Manufacturer:").and_then(|v| u32::from_str_radix(v.trim_start_matches("0x"), 16).ok());
    let vendor = vendor.map(|v| String::from_utf8_lossy(&v.to_be_bytes()).trim_matches(['\0', ' ']).to_owned());
    Some(Tpm { version: "1.2".into(), vendor, firmware: field("Firmware version:").map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_first_and_firmware_for_the_rest() {
        let listed = Tpm { version: "1.2".into(), vendor: Some("IFX".into()), firmware: None };
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path(), None), None);
        assert_eq!(read(root.path(), Some(listed.clone())), Some(listed.clone()));
        let folder = root.path().join("class/tpm/tpm0");
        std::fs::create_dir_all(folder.join("device")).unwrap();
        std::fs::write(folder.join("tpm_version_major"), "2\n").unwrap();
        let seen = read(root.path(), Some(listed)).unwrap();
        assert_eq!((seen.version.as_str(), seen.vendor.as_deref()), ("2.0", Some("IFX")));
        std::fs::write(folder.join("tpm_version_major"), "1\n").unwrap();
        let caps = "Manufacturer: 0x53544d20\nTCG version: 1.2\nFirmware version: 13.12\n";
        std::fs::write(folder.join("device/caps"), caps).unwrap();
        let seen = read(root.path(), None).unwrap();
        assert_eq!((seen.vendor.as_deref(), seen.firmware.as_deref()), (Some("STM"), Some("13.12")));
    }
}
