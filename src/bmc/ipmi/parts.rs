//! Inventories of parts: makers, models and serial numbers (FRU).

use std::collections::BTreeMap;
use std::time::Duration;

use super::Ipmi;
use crate::bmc::Part;
use crate::error::{Kind, Result};
use crate::ipmi::Completion;
use crate::ipmi::fru::{self, Area, GetArea, Read};
use crate::ipmi::sdr::FruDevice;

/// The inventory that each BMC has, of the server itself (section 38).
const BUILT_IN: u8 = 0;
/// Devices of one BMC; a large server has 40.
const DEVICES_MAX: usize = 128;
const PIECE: u8 = 32;
const PIECE_MIN: u8 = 4;
const BUSY_MAX: u32 = 10;
const BUSY: Duration = Duration::from_millis(300);

impl Ipmi<'_> {
    pub(super) async fn read_parts(&mut self) -> Result<Vec<Part>> {
        let mut devices = match self.read_records().await {
            Ok(records) => records.fru.clone(),
            Err(e) if e.kind() == Kind::Unreachable => return Err(e),
            Err(e) => {
                tracing::warn!(bmc = self.session.whose(), error = ?e, "without sensor records, only the server's own part is read");
                Vec::new()
            }
        };
        if !devices.iter().any(|device| device.id == BUILT_IN) {
            devices.insert(0, FruDevice { id: BUILT_IN, name: "server".to_owned() });
        }
        devices.sort_by_key(|device| device.id);
        devices.dedup_by_key(|device| device.id);
        let mut parts = Vec::new();
        for device in devices.iter().take(DEVICES_MAX) {
            parts.extend(self.part(device).await?);
        }
        Ok(parts)
    }

    /// `None` for a device of which nothing is plugged in, or that was never written.
    async fn part(&mut self, device: &FruDevice) -> Result<Option<Part>> {
        let mut broken = Vec::new();
        let storage = match self.session.ask(&GetArea(device.id)).await? {
            Ok(area) => self.storage(device.id, area, &mut broken).await?,
            Err(fault) => {
                tracing::debug!(bmc = self.session.whose(), part = device.name, ?fault, "no inventory");
                return Ok(None);
            }
        };
        if storage.is_empty() && broken.is_empty() {
            return Ok(None);
        }
        let inventory = if storage.is_empty() { fru::Inventory::default() } else { fru::parse(&storage) };
        // What could not be read makes areas look broken; the cause is told once.
        if broken.is_empty() {
            broken = inventory.broken;
        }
        let fields: BTreeMap<String, String> =
            inventory.fields.into_iter().map(|f| (format!("{}.{}", f.area.name(), f.name), f.value)).collect();
        let empty = fields.is_empty() && broken.is_empty();
        Ok((!empty).then(|| Part { name: device.name.clone(), fields, broken }))
    }

    /// The storage from its beginning, as much of it as has a meaning.
    async fn storage(&mut self, device: u8, area: Area, broken: &mut Vec<String>) -> Result<Vec<u8>> {
        let unit = if area.by_words { 2 } else { 1 };
        let size = usize::from(area.bytes);
        let (mut storage, mut piece, mut busy) = (Vec::new(), PIECE, 0);
        loop {
            let wanted = fru::needed(&storage).min(size);
            if storage.len() >= wanted {
                return Ok(storage);
            }
            // A whole number of units; the last one may lie beyond what is needed.
            let left = (wanted - storage.len()).next_multiple_of(unit).min(usize::from(piece));
            let ask = Read { device, offset: (storage.len() / unit) as u16, count: (left / unit) as u8 };
            match self.session.ask(&ask).await? {
                Ok(bytes) if bytes.is_empty() => {
                    broken.push(format!("the storage ends after {} bytes", storage.len()));
                    return Ok(storage);
                }
                Ok(bytes) => {
                    // Odd bytes of an area of words would shift all that follows.
                    let take = bytes.len().min(left) / unit * unit;
                    if take == 0 {
                        broken.push(format!("the storage ends after {} bytes", storage.len()));
                        return Ok(storage);
                    }
                    storage.extend(bytes.iter().take(take));
                }
                Err(fault) => match fault.completion() {
                    Some(Completion::CANNOT_RETURN_LENGTH | Completion(0xc7 | 0xc8))
                        if left > usize::from(PIECE_MIN) =>
                    {
                        piece = (left / 2).next_multiple_of(unit).max(usize::from(PIECE_MIN)) as u8;
                    }
                    Some(Completion(0x81)) if busy < BUSY_MAX => {
                        busy += 1;
                        tokio::time::sleep(BUSY).await;
                    }
                    // Nothing is plugged in there.
                    Some(Completion::NOT_PRESENT) if storage.is_empty() => return Ok(storage),
                    _ => {
                        let why = fault.into_error(self.session.whose());
                        broken.push(format!("not readable behind byte {}: {why}", storage.len()));
                        return Ok(storage);
                    }
                },
            }
        }
    }
}
