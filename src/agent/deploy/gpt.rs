//! The partition table of a written image, fitted to the disk it is on: the backup moves to the disk's end (UEFI
//! specification 2.10 section 5.3.2), and the seed gets a partition there.
//!
//! Entries are kept byte for byte and in their slots, so that partition numbers, which boot loaders have built in, stay
//! as the image has them (the `gpt` crate closes gaps; here it is the reader in the tests).

use std::ops::Range;

use super::layout::{BACKUP_MAX, MIB};
use crate::agent::block::{Buffer, Device};
use crate::error::{Error, Result};
use crate::link::Partition;

pub const SEED_NAME: &str = "rackline-seed";

/// Basic data, EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, in the byte order of the table.
const BASIC_DATA: [u8; 16] =
    [0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7];

/// Linux file system data, 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
const LINUX_DATA: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// Table 5-5: the fields that are looked at or changed.
mod field {
    use std::ops::Range;
    pub const SIGNATURE: Range<usize> = 0..8;
    pub const HEADER_SIZE: Range<usize> = 12..16;
    pub const HEADER_CRC: Range<usize> = 16..20;
    pub const MY_LBA: Range<usize> = 24..32;
    pub const ALTERNATE_LBA: Range<usize> = 32..40;
    pub const LAST_USABLE: Range<usize> = 48..56;
    pub const DISK_ID: Range<usize> = 56..72;
    pub const ENTRIES_LBA: Range<usize> = 72..80;
    pub const ENTRY_COUNT: Range<usize> = 80..84;
    pub const ENTRY_SIZE: Range<usize> = 84..88;
    pub const ENTRIES_CRC: Range<usize> = 88..92;
}

/// Table 5-6: an entry.
mod entry {
    use std::ops::Range;
    pub const FIRST: Range<usize> = 32..40;
    pub const LAST: Range<usize> = 40..48;
    pub const NAME: Range<usize> = 56..128;
}

/// A header sector and the entry array that it leads to.
struct Table {
    header: Vec<u8>,
    entries: Vec<u8>,
}

/// Moves the backup, adds the seed's partition at `seed`, in bytes, and writes it all; the disk's content is not touched.
pub fn fit(device: &Device, seed: &Range<u64>) -> Result<()> {
    let mut table = Table::read(device)?;
    let old_backup = table.number64(field::ALTERNATE_LBA)?;
    table.add_seed(device, seed)?;
    table.write(device)?;
    forget_old_backup(device, old_backup, seed)?;
    protective_mbr(device)?;
    device.sync()
}

/// The id of the table's disk and how many partitions it has; `None`: no whole table.
pub fn identity(device: &Device) -> Result<Option<(uuid::Uuid, usize)>> {
    let Ok(table) = Table::read(device) else { return Ok(None) };
    let id = table.header.get(field::DISK_ID).and_then(|b| b.try_into().ok()).map(uuid::Uuid::from_bytes_le);
    let size = table.number32(field::ENTRY_SIZE)? as usize;
    let used = table.entries.chunks(size).filter(|e| e.iter().take(16).any(|b| *b != 0)).count();
    Ok(id.map(|id| (id, used)))
}

/// A new table on a disk that may be overwritten, with one partition from 1 MiB almost to the end. Disk and partition get the
/// same id. The header is the last that is written: without it there is no table.
pub fn single(device: &Device, id: uuid::Uuid, name: &str) -> Result<()> {
    const ENTRIES: usize = 128;
    const ENTRY: usize = 128;
    let sector = u64::from(device.sector());
    let total = device.size() / sector;
    let array = ((ENTRIES * ENTRY) as u64).div_ceil(sector);
    let align = MIB / sector;
    let last_usable = total.checked_sub(2 + array).ok_or_else(|| too_small(device))?;
    let last = ((last_usable + 1) / align * align).saturating_sub(1);
    if last < 16 * align {
        return Err(too_small(device));
    }
    let mut entries = vec![0; ENTRIES * ENTRY];
    let name = utf16(name);
    let mut put = |at: usize, bytes: &[u8]| entries[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &LINUX_DATA);
    put(16, &id.to_bytes_le());
    put(entry::FIRST.start, &align.to_le_bytes());
    put(entry::LAST.start, &last.to_le_bytes());
    put(entry::NAME.start, &name[..name.len().min(entry::NAME.len() - 2)]);
    let mut table = Table { header: vec![0; sector as usize], entries };
    table.put(field::SIGNATURE, b"EFI PART");
    table.put(8..12, &0x0001_0000u32.to_le_bytes());
    table.put(field::HEADER_SIZE, &92u32.to_le_bytes());
    table.put(field::MY_LBA, &1u64.to_le_bytes());
    table.put(field::ALTERNATE_LBA, &(total - 1).to_le_bytes());
    table.put(40..48, &(2 + array).to_le_bytes());
    table.put(field::LAST_USABLE, &last_usable.to_le_bytes());
    table.put(field::DISK_ID, &id.to_bytes_le());
    table.put(field::ENTRIES_LBA, &2u64.to_le_bytes());
    table.put(field::ENTRY_COUNT, &(ENTRIES as u32).to_le_bytes());
    table.put(field::ENTRY_SIZE, &(ENTRY as u32).to_le_bytes());
    table.put(field::ENTRIES_CRC, &crc32(&table.entries).to_le_bytes());
    table.seal()?;
    // What was at the ends of the new partition would be taken for its content.
    device.zero(0, 2 * MIB)?;
    device.zero((last + 1) * sector - MIB, MIB)?;
    let mut mbr = vec![0; sector as usize];
    mbr[446 + 2] = 2;
    mbr[446 + 4] = 0xee;
    mbr[446 + 5..446 + 8].fill(0xff);
    mbr[446 + 8..446 + 12].copy_from_slice(&1u32.to_le_bytes());
    mbr[446 + 12..446 + 16].copy_from_slice(&u32::try_from(total - 1).unwrap_or(u32::MAX).to_le_bytes());
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    write(device, 0, &mbr)?;
    table.write(device)?;
    device.sync()
}

fn too_small(device: &Device) -> Error {
    Error::conflict("storage.space", format!("{} is too small for a partition", device.path().display()))
}

/// The seed partition of a disk that has one, in bytes.
pub fn find_seed(device: &Device) -> Result<Option<Range<u64>>> {
    let table = Table::read(device)?;
    let (size, sector) = (table.number32(field::ENTRY_SIZE)? as usize, u64::from(device.sector()));
    let name = utf16(SEED_NAME);
    let named = |entry: &&[u8]| entry.get(entry::NAME).is_some_and(|n| n.starts_with(&name) && n[name.len()] == 0);
    let Some(entry) = table.entries.chunks(size).find(named) else { return Ok(None) };
    let lba = |field: Range<usize>| entry.get(field).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let place = (|| {
        let start = lba(entry::FIRST)?.checked_mul(sector)?;
        let end = lba(entry::LAST)?.checked_add(1)?.checked_mul(sector)?;
        (start < end && end <= device.size()).then_some(start..end)
    })();
    Ok(place)
}

/// Those that are in use, in the order of their numbers. At most 1024, as the table is read.
pub fn partitions(device: &Device) -> Result<Vec<Partition>> {
    let table = Table::read(device)?;
    let (size, sector) = (table.number32(field::ENTRY_SIZE)? as usize, u64::from(device.sector()));
    let lba = |entry: &[u8], field: Range<usize>| entry.get(field)?.try_into().ok().map(u64::from_le_bytes);
    let read = |(i, entry): (usize, &[u8])| {
        let start = lba(entry, entry::FIRST)?.checked_mul(sector)?;
        let end = lba(entry, entry::LAST)?.checked_add(1)?.checked_mul(sector)?;
        let units = entry.get(entry::NAME)?.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let name = char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|c| c.unwrap_or('\u{fffd}')).collect();
        Some(Partition { number: i as u32 + 1, name, start_bytes: start, size_bytes: end.checked_sub(start)? })
    };
    let used = |(_, entry): &(usize, &[u8])| entry.iter().take(16).any(|b| *b != 0);
    Ok(table.entries.chunks(size).enumerate().filter(used).filter_map(read).collect())
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

impl Table {
    fn read(device: &Device) -> Result<Self> {
        let sector = device.sector() as usize;
        let mut table = Self { header: read(device, sector as u64, sector)?, entries: Vec::new() };
        let signature = table.header.get(field::SIGNATURE) == Some(b"EFI PART");
        let size = table.number32(field::HEADER_SIZE)? as usize;
        if !signature || !(92..=sector).contains(&size) || table.header_crc()? != table.number32(field::HEADER_CRC)? {
            return Err(wrong("its header is not valid"));
        }
        let (count, size) = (table.number32(field::ENTRY_COUNT)?, table.number32(field::ENTRY_SIZE)?);
        if !(1..=1024).contains(&count) || !(128..=1024).contains(&size) || !size.is_power_of_two() {
            return Err(wrong("its entries have an impossible size"));
        }
        let bytes = (count * size) as usize;
        if bytes as u64 + 2 * sector as u64 > BACKUP_MAX {
            return Err(wrong("it has too many entries"));
        }
        let start = table.number64(field::ENTRIES_LBA)?.checked_mul(sector as u64);
        let start = start.filter(|s| *s < device.size() / 2).ok_or_else(|| wrong("its entries are out of reach"))?;
        table.entries = read(device, start, bytes)?;
        if crc32(&table.entries) != table.number32(field::ENTRIES_CRC)? {
            return Err(wrong("the checksum of its entries is wrong"));
        }
        Ok(table)
    }

    /// Sets the end of the disk anew and puts the seed's entry behind the last one that is used.
    fn add_seed(&mut self, device: &Device, seed: &Range<u64>) -> Result<()> {
        let sector = u64::from(device.sector());
        let total = device.size() / sector;
        let array = (self.entries.len() as u64).div_ceil(sector);
        let last_usable = total.checked_sub(2 + array).ok_or_else(|| no_room(device))?;
        let (first, last) = (seed.start / sector, (seed.end / sector).saturating_sub(1));
        if !seed.start.is_multiple_of(MIB) || last < first || last > last_usable {
            return Err(no_room(device));
        }

        let size = self.number32(field::ENTRY_SIZE)? as usize;
        let used = |entry: &[u8]| entry.iter().take(16).any(|b| *b != 0);
        let end_of =
            |entry: &[u8]| entry.get(entry::LAST).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
        if self.entries.chunks(size).filter(|e| used(e)).any(|e| end_of(e) >= first) {
            return Err(no_room(device));
        }
        let slots: Vec<bool> = self.entries.chunks(size).map(used).collect();
        let behind = slots.iter().rposition(|u| *u).map_or(0, |i| i + 1);
        let slot = if behind < slots.len() { Some(behind) } else { slots.iter().position(|u| !u) };
        let entry = slot.and_then(|s| self.entries.chunks_mut(size).nth(s));
        let Some(entry) = entry else { return Err(wrong("it has no free entry for the seed")) };

        entry.fill(0);
        let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &BASIC_DATA);
        put(16, &uuid::Uuid::new_v4().to_bytes_le());
        put(entry::FIRST.start, &first.to_le_bytes());
        put(entry::LAST.start, &last.to_le_bytes());
        put(entry::NAME.start, &utf16(SEED_NAME));

        self.put(field::ALTERNATE_LBA, &(total - 1).to_le_bytes());
        self.put(field::LAST_USABLE, &last_usable.to_le_bytes());
        self.put(field::ENTRIES_CRC, &crc32(&self.entries).to_le_bytes());
        self.seal()
    }

    /// The backup first: an interruption leaves at least one whole table.
    fn write(&self, device: &Device) -> Result<()> {
        let sector = u64::from(device.sector());
        let last = self.number64(field::ALTERNATE_LBA)?;
        let backup_entries = self.number64(field::LAST_USABLE)? + 1;
        let mut backup = Self { header: self.header.clone(), entries: Vec::new() };
        backup.put(field::MY_LBA, &last.to_le_bytes());
        backup.put(field::ALTERNATE_LBA, &1u64.to_le_bytes());
        backup.put(field::ENTRIES_LBA, &backup_entries.to_le_bytes());
        backup.seal()?;
        write(device, backup_entries * sector, &self.entries)?;
        write(device, last * sector, &backup.header)?;
        device.sync()?;
        write(device, self.number64(field::ENTRIES_LBA)? * sector, &self.entries)?;
        write(device, sector, &self.header)
    }

    fn seal(&mut self) -> Result<()> {
        let crc = self.header_crc()?;
        self.put(field::HEADER_CRC, &crc.to_le_bytes());
        Ok(())
    }

    /// Over the header with its own checksum taken as zero.
    fn header_crc(&self) -> Result<u32> {
        let size = self.number32(field::HEADER_SIZE)? as usize;
        let mut header = self.header.get(..size).ok_or_else(|| wrong("its header is too long"))?.to_vec();
        header.get_mut(field::HEADER_CRC).ok_or_else(|| wrong("its header is too short"))?.fill(0);
        Ok(crc32(&header))
    }

    fn put(&mut self, field: std::ops::Range<usize>, bytes: &[u8]) {
        // A header is a whole sector, and all fields are within its first 92 bytes.
        self.header[field].copy_from_slice(bytes);
    }

    fn number32(&self, field: std::ops::Range<usize>) -> Result<u32> {
        let bytes = self.header.get(field).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or_else(|| wrong("its header is too short"))
    }

    fn number64(&self, field: std::ops::Range<usize>) -> Result<u64> {
        let bytes = self.header.get(field).and_then(|b| b.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(|| wrong("its header is too short"))
    }
}

/// The image's own backup header now stands in the middle of the disk, where recovery tools would find it.
fn forget_old_backup(device: &Device, lba: u64, seed: &Range<u64>) -> Result<()> {
    let sector = device.sector() as usize;
    let Some(offset) = lba.checked_mul(sector as u64) else { return Ok(()) };
    let at_end = offset.saturating_add(sector as u64) >= device.size();
    let in_seed = seed.contains(&offset);
    if at_end || in_seed || lba <= 1 {
        return Ok(());
    }
    let bytes = read(device, offset, sector)?;
    if bytes.get(field::SIGNATURE) == Some(b"EFI PART") {
        write(device, offset, &vec![0; sector])?;
    }
    Ok(())
}

/// The entry of type 0xEE covers the whole disk, or as much of it as 32 bits can say; boot code stays.
fn protective_mbr(device: &Device) -> Result<()> {
    let sector = device.sector() as usize;
    let mut mbr = read(device, 0, sector)?;
    let sectors = u32::try_from(device.size() / sector as u64 - 1).unwrap_or(u32::MAX);
    let Some(table) = mbr.get_mut(446..510) else { return Ok(()) };
    match table.chunks_exact_mut(16).find(|e| e[4] == 0xee) {
        Some(entry) => entry[12..16].copy_from_slice(&sectors.to_le_bytes()),
        None => return Err(wrong("it has no protective MBR")),
    }
    write(device, 0, &mbr)
}

fn read(device: &Device, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut buffer = Buffer::new(device.round_up(len));
    device.read_at(&mut buffer, offset)?;
    Ok(buffer.get(..len).unwrap_or_default().to_vec())
}

fn write(device: &Device, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut buffer = Buffer::new(device.round_up(bytes.len()));
    buffer[..bytes.len()].copy_from_slice(bytes);
    device.write_at(&buffer, offset)
}

fn wrong(why: &str) -> Error {
    Error::refused("image.gpt", format!("the image's partition table cannot be used: {why}"))
        .hint("build the image as a GPT disk with sectors of 512 bytes")
}

fn no_room(device: &Device) -> Error {
    let what = format!("{} has no room behind the image for the seed partition", device.path().display());
    Error::conflict("disk.too-small", what).hint("order an image for smaller disks, or fit a larger disk")
}

/// CRC-32 of ISO-HDLC (reflected, polynomial 0x04C11DB7), as UEFI wants it. At most a few KiB, so without tables.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_table_of_its_own_is_read_by_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let device = Device::of_file(file.path());
        assert_eq!(identity(&device).unwrap(), None);
        let id = uuid::Uuid::from_u128(0x1234);
        single(&device, id, "rackline-data").unwrap();
        assert_eq!(identity(&device).unwrap(), Some((id, 1)));
        let table = gpt::GptConfig::new().writable(false).open(file.path()).unwrap();
        let parts: Vec<_> = table.partitions().values().collect();
        assert_eq!((parts.len(), parts[0].name.as_str(), parts[0].part_guid), (1, "rackline-data", id));
        assert_eq!((parts[0].first_lba, parts[0].last_lba), (2048, (63 << 11) - 1));
        assert_eq!(parts[0].part_type_guid, gpt::partition_types::LINUX_FS);
        single(&device, uuid::Uuid::nil(), &"x".repeat(99)).unwrap();
    }

    #[test]
    fn the_type_is_basic_data() {
        let uuid = uuid::Uuid::from_bytes_le(BASIC_DATA);
        assert_eq!(uuid.to_string(), "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7");
    }
}
