//! Recordings of consoles on disk. What a machine printed is kept as it came, with its escape sequences, in boots (from
//! one power action of ours to the next) and parts of bounded size:
//!
//! ```text
//! console/MACHINE/1763750400123-000.log.zst   what was printed; .log while it is written to
//! console/MACHINE/1763750400123-000.idx       "1763750412345 8192": printed at this time from this byte of the boot on,
//!                                             "1763750419000 9300 the BMC was silent for 27 s": a note at this place
//! ```
//!
//! One thread writes for all machines and compresses what is closed, so that a slow disk holds up nothing but consoles. A
//! machine that prints nothing costs no file and no work. Nothing is synced: what a crash of this host loses is the last
//! seconds of a log.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::MachineId;

/// Milliseconds since 1970.
pub type Millis = i64;

/// What is kept of one machine.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes in one part.
    pub part: u64,
    /// Parts of one boot: the first, which tells how it began, and the newest.
    pub parts: usize,
    pub boots: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { part: 2 << 20, parts: 4, boots: 8 }
    }
}

/// Orders that wait for the disk. Beyond it consoles wait, and their BMCs with them.
const QUEUE: usize = 1024;
/// Time between two entries of an index, unless there is something to note.
const ENTRY_EVERY: Millis = 1000;
/// Lines of an index, after which the next part begins: of a machine that says a word each second for weeks.
const ENTRIES_MAX: u32 = 16_384;
/// No file of ours is larger; what is is not read.
const PART_MAX: u64 = 64 << 20;
const COMPRESSION: i32 = 3;

enum Order {
    /// A boot begins; `again`: the one before goes on, after a restart of the appliance.
    Begin {
        again: bool,
    },
    Text(Vec<u8>),
    Note(String),
    End,
}

struct Letter {
    machine: MachineId,
    at: Millis,
    order: Order,
}

/// The door to the thread; clones lead to the same.
#[derive(Clone)]
pub struct Recorder {
    letters: mpsc::Sender<Letter>,
    shelf: Shelf,
}

fn now() -> Millis {
    jiff::Timestamp::now().as_millisecond()
}

impl Recorder {
    /// The thread ends when the last clone is gone, after it has written what came before.
    pub fn start(root: &Path, limits: Limits) -> Result<Self> {
        let failed = || format!("cannot record consoles in {}", root.display());
        // What a machine prints is not for everybody: its kernel's command line has the agent's token.
        let private = |()| fs::set_permissions(root, fs::Permissions::from_mode(0o700));
        fs::create_dir_all(root).and_then(private).or_fail(Kind::Config, "console.record", failed)?;
        let (letters, mut inbox) = mpsc::channel::<Letter>(QUEUE);
        let shelf = Shelf { root: root.to_owned() };
        let mut writer = Writer { shelf: shelf.clone(), limits, open: HashMap::new() };
        let run = move || {
            while let Some(letter) = inbox.blocking_recv() {
                writer.take(letter);
            }
        };
        std::thread::Builder::new().name("consoles".into()).spawn(run).or_fail(
            Kind::Internal,
            "console.record",
            failed,
        )?;
        Ok(Self { letters, shelf })
    }

    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// A boot of this machine begins; `again`: the newest one goes on.
    pub fn begin(&self, machine: MachineId, again: bool) {
        self.tell(machine, Order::Begin { again });
    }

    /// Something that the machine did not print, at the place where it is now.
    pub fn note(&self, machine: MachineId, note: &str) {
        self.tell(machine, Order::Note(note.replace(['\n', '\r'], " ")));
    }

    pub fn end(&self, machine: MachineId) {
        self.tell(machine, Order::End);
    }

    /// Waits where the disk does not keep up.
    pub async fn text(&self, machine: MachineId, text: Vec<u8>) {
        let _ = self.letters.send(Letter { machine, at: now(), order: Order::Text(text) }).await;
    }

    /// Does not wait: these come from where machines are steered.
    fn tell(&self, machine: MachineId, order: Order) {
        if self.letters.try_send(Letter { machine, at: now(), order }).is_err() {
            tracing::warn!(%machine, "the disk does not keep up with the consoles; a mark is missing in a recording");
        }
    }
}

/// The part of a boot that is written to.
struct Open {
    boot: Millis,
    part: u32,
    /// Bytes of the boot before this part, and in it.
    base: u64,
    length: u64,
    /// Made with the first byte or note.
    files: Option<Files>,
    last_entry: Millis,
    entries: u32,
}

struct Files {
    log: File,
    index: File,
}

struct Writer {
    shelf: Shelf,
    limits: Limits,
    open: HashMap<MachineId, Open>,
}

impl Writer {
    fn take(&mut self, Letter { machine, at, order }: Letter) {
        let result = match order {
            Order::Begin { again } => self.begin(machine, at, again),
            Order::Text(text) => self.text(machine, at, &text),
            Order::Note(note) => self.note(machine, at, &note),
            Order::End => self.close(machine, at),
        };
        if let Err(e) = result {
            // The next piece opens the file again; the rest is not worth a word per packet.
            if let Some(open) = self.open.get_mut(&machine)
                && open.files.take().is_some()
            {
                tracing::warn!(%machine, error = %e, "a console cannot be recorded now");
            }
        }
    }

    fn begin(&mut self, machine: MachineId, at: Millis, again: bool) -> io::Result<()> {
        if again && self.open.contains_key(&machine) {
            return Ok(());
        }
        let mut open = Open { boot: at, part: 0, base: 0, length: 0, files: None, last_entry: 0, entries: 0 };
        if self.open.contains_key(&machine) {
            self.close(machine, at)?;
        } else if let Some(left) = self.shelf.parts(machine, Which::Newest)?.pop() {
            // Of an appliance that was killed, the newest part may be open still.
            if !left.compressed {
                left.finish()?;
            }
            if again {
                (open.boot, open.part, open.base) = (left.boot, left.number + 1, left.end());
            }
        }
        self.open.insert(machine, open);
        Ok(())
    }

    fn text(&mut self, machine: MachineId, at: Millis, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            let limit = self.limits.part;
            let Some(open) = self.files(machine, at)? else { return Ok(()) };
            let (now, later) =
                text.split_at_checked(usize::try_from(limit - open.length).unwrap_or(0)).unwrap_or((text, &[]));
            if at >= open.last_entry + ENTRY_EVERY {
                open.entry(at, "")?;
            }
            if let Some(files) = &mut open.files {
                files.log.write_all(now)?;
            }
            open.length += now.len() as u64;
            text = later;
            if open.length >= limit || open.entries >= ENTRIES_MAX {
                self.turn_over(machine, at)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, machine: MachineId, at: Millis, note: &str) -> io::Result<()> {
        match self.files(machine, at)? {
            Some(open) => open.entry(at, note),
            None => Ok(()),
        }
    }

    /// The open part with its files; `None` where this machine is not recorded.
    fn files(&mut self, machine: MachineId, at: Millis) -> io::Result<Option<&mut Open>> {
        let Some(open) = self.open.get_mut(&machine) else { return Ok(None) };
        if open.files.is_none() {
            let folder = self.shelf.folder(machine);
            fs::create_dir_all(&folder)?;
            let name = format!("{}-{:03}", open.boot, open.part);
            let make = |extension: &str| {
                let path = folder.join(format!("{name}.{extension}"));
                OpenOptions::new().create(true).append(true).open(path)
            };
            let log = make("log")?;
            open.length = log.metadata()?.len();
            open.files = Some(Files { index: make("idx")?, log });
            open.entry(at, "")?;
            self.shelf.prune(machine, &self.limits)?;
        }
        Ok(self.open.get_mut(&machine))
    }

    /// The part is full: the next one.
    fn turn_over(&mut self, machine: MachineId, at: Millis) -> io::Result<()> {
        let Some(open) = self.open.get(&machine) else { return Ok(()) };
        let next = Open {
            boot: open.boot,
            part: open.part + 1,
            base: open.base + open.length,
            length: 0,
            files: None,
            last_entry: open.last_entry,
            entries: 0,
        };
        self.close(machine, at)?;
        self.open.insert(machine, next);
        Ok(())
    }

    fn close(&mut self, machine: MachineId, at: Millis) -> io::Result<()> {
        let Some(mut open) = self.open.remove(&machine) else { return Ok(()) };
        if open.files.is_none() {
            return Ok(());
        }
        // The last entry says how long the part is, once it is compressed.
        open.entry(at, "")?;
        compress(&self.shelf.folder(machine).join(format!("{}-{:03}.log", open.boot, open.part)))
    }
}

impl Open {
    fn entry(&mut self, at: Millis, note: &str) -> io::Result<()> {
        let Some(files) = &mut self.files else { return Ok(()) };
        self.last_entry = at;
        self.entries += 1;
        let offset = self.base + self.length;
        let line = if note.is_empty() { format!("{at} {offset}\n") } else { format!("{at} {offset} {note}\n") };
        files.index.write_all(line.as_bytes())
    }
}

/// Replaces a file by its compressed form. Killed in between, there is the one or the other, whole.
fn compress(log: &Path) -> io::Result<()> {
    durable::replace(&log.with_extension("log.zst"), &zstd::bulk::compress(&fs::read(log)?, COMPRESSION)?)?;
    fs::remove_file(log)
}

/// Where recordings are read. They may be written to at the same time.
#[derive(Clone)]
pub struct Shelf {
    root: PathBuf,
}

/// A line of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub at: Millis,
    /// In bytes from the start of the boot.
    pub offset: u64,
    pub note: Option<String>,
}

struct Part {
    boot: Millis,
    number: u32,
    log: PathBuf,
    compressed: bool,
    entries: Vec<Entry>,
    /// On disk.
    size: u64,
}

/// Of which boots.
enum Which {
    All,
    Newest,
    Of(Millis),
}

/// What is kept of one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Its name: when it began.
    pub started: Millis,
    pub last: Millis,
    /// Bytes that were printed, also those that are not kept any more.
    pub printed: u64,
    /// On disk, compressed.
    pub stored: u64,
}

/// Bytes of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Piece {
    /// Of the first byte; later than what was asked for where that is not kept any more.
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// Where this ends; more is there while it is less than `end`.
    pub next: u64,
    pub end: u64,
    /// Times and notes in the piece, the one before its first byte too.
    pub entries: Vec<Entry>,
}

impl Part {
    fn base(&self) -> u64 {
        self.entries.first().map_or(0, |entry| entry.offset)
    }

    fn end(&self) -> u64 {
        match self.compressed {
            true => self.entries.last().map_or(0, |entry| entry.offset),
            false => self.base() + self.size,
        }
    }

    /// Closes what nobody writes to any more.
    fn finish(&self) -> io::Result<()> {
        let last = self.entries.last().map_or(self.boot, |entry| entry.at);
        let mut index = OpenOptions::new().create(true).append(true).open(self.log.with_extension("idx"))?;
        // On a line of its own, where the last one was cut off.
        index.write_all(format!("\n{last} {}\n", self.end()).as_bytes())?;
        compress(&self.log)
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match File::open(&self.log) {
            Ok(file) if !self.compressed => file.take(PART_MAX).read_to_end(&mut bytes)?,
            Ok(file) => zstd::Decoder::new(file)?.take(PART_MAX).read_to_end(&mut bytes)?,
            // Compressed since the folder was read.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.compressed => {
                zstd::Decoder::new(File::open(self.log.with_extension("log.zst"))?)?
                    .take(PART_MAX)
                    .read_to_end(&mut bytes)?
            }
            Err(e) => return Err(e),
        };
        Ok(bytes)
    }
}

fn entries(path: &Path) -> Vec<Entry> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(PART_MAX).read_to_string(&mut text));
    if let Err(e) = read {
        tracing::debug!(path = %path.display(), error = %e, "an index of a console cannot be read");
    }
    let entry = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (at, offset) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Entry { at, offset, note: words.next().map(str::to_owned) })
    };
    text.lines().filter_map(entry).collect()
}

impl Shelf {
    fn folder(&self, machine: MachineId) -> PathBuf {
        self.root.join(machine.to_string())
    }

    /// Oldest first.
    fn parts(&self, machine: MachineId, which: Which) -> io::Result<Vec<Part>> {
        let folder = match fs::read_dir(self.folder(machine)) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut parts = BTreeMap::new();
        for file in folder {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let Some((stem, kind)) = name.split_once('.') else { continue };
            let key = stem.split_once('-').and_then(|(boot, number)| Some((boot.parse().ok()?, number.parse().ok()?)));
            let (Some((boot, number)), true) = (key, matches!(kind, "log" | "log.zst")) else { continue };
            let (log, compressed) = (file.path(), kind == "log.zst");
            let size = file.metadata().map_or(0, |m| m.len());
            // Both are there where the appliance was killed between the two: the compressed one is whole.
            let part = Part { boot, number, log, compressed, entries: Vec::new(), size };
            if compressed || !parts.contains_key(&(boot, number)) {
                parts.insert((boot, number), part);
            }
        }
        let newest = parts.keys().next_back().map(|(boot, _)| *boot);
        let mut parts: Vec<Part> = parts.into_values().collect();
        match which {
            Which::All => {}
            Which::Newest => parts.retain(|part| Some(part.boot) == newest),
            Which::Of(boot) => parts.retain(|part| part.boot == boot),
        }
        for part in &mut parts {
            part.entries = entries(&self.folder(machine).join(format!("{}-{:03}.idx", part.boot, part.number)));
        }
        Ok(parts)
    }

    fn prune(&self, machine: MachineId, limits: &Limits) -> io::Result<()> {
        let mut boots: BTreeMap<Millis, Vec<u32>> = BTreeMap::new();
        for part in self.parts(machine, Which::All)? {
            boots.entry(part.boot).or_default().push(part.number);
        }
        let too_many = boots.len().saturating_sub(limits.boots.max(1));
        for (i, (boot, numbers)) in boots.iter().enumerate() {
            let excess = numbers.len().saturating_sub(limits.parts.max(2));
            let gone: &[u32] = if i < too_many { numbers } else { numbers.get(1..=excess).unwrap_or_default() };
            for number in gone {
                for extension in ["log", "log.zst", "log.zst.new", "idx"] {
                    let _ = fs::remove_file(self.folder(machine).join(format!("{boot}-{number:03}.{extension}")));
                }
            }
        }
        Ok(())
    }

    /// Oldest first.
    pub fn boots(&self, machine: MachineId) -> Result<Vec<Boot>> {
        let mut boots: Vec<Boot> = Vec::new();
        for part in self.parts(machine, Which::All).map_err(unreadable)? {
            let last = part.entries.last().map_or(part.boot, |entry| entry.at);
            match boots.last_mut().filter(|boot| boot.started == part.boot) {
                Some(boot) => {
                    boot.last = last;
                    boot.printed = part.end();
                    boot.stored += part.size;
                }
                None => {
                    boots.push(Boot { started: part.boot, last, printed: part.end(), stored: part.size });
                }
            }
        }
        Ok(boots)
    }

    /// Up to `limit` bytes from `offset` on, of the boot that began then, or of the newest.
    pub fn read(&self, machine: MachineId, boot: Option<Millis>, offset: u64, limit: usize) -> Result<Piece> {
        let parts = self.parts(machine, boot.map_or(Which::Newest, Which::Of)).map_err(unreadable)?;
        let Some(boot) = boot.or_else(|| parts.last().map(|part| part.boot)) else {
            return Err(Error::not_found("console.empty", "nothing was recorded of this machine's console")
                .hint("it is recorded from power-on until delivery; [bmc] console = \"always\" changes that"));
        };
        let Some(end) = parts.last().map(Part::end) else {
            return Err(Error::not_found("console.boot", format!("there is no recorded boot {boot}"))
                .hint("`rackline console NAME --boots` lists them"));
        };
        let Some(part) = parts.iter().find(|part| offset < part.end()).or(parts.last()) else {
            return Ok(Piece::default());
        };
        let start = offset.clamp(part.base(), part.end().max(part.base()));
        let bytes = part.bytes().map_err(unreadable)?;
        let bytes = bytes.get(usize::try_from(start - part.base()).unwrap_or(usize::MAX)..).unwrap_or_default();
        let bytes = bytes.get(..limit).unwrap_or(bytes).to_vec();
        let next = start + bytes.len() as u64;
        let before = part.entries.iter().rev().find(|entry| entry.offset < start);
        let within = part.entries.iter().filter(|entry| (start..=next).contains(&entry.offset));
        let first = before.map(|entry| Entry { note: None, ..entry.clone() });
        Ok(Piece {
            offset: start,
            bytes,
            next,
            end: end.max(next),
            entries: first.into_iter().chain(within.cloned()).collect(),
        })
    }
}

fn unreadable(e: io::Error) -> Error {
    Error::internal("console.read", "a recording of a console cannot be read").because(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits { part: 100, parts: 3, boots: 2 };

    struct Desk {
        writer: Writer,
        machine: MachineId,
        _dir: tempfile::TempDir,
    }

    impl Desk {
        fn new(limits: Limits) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let shelf = Shelf { root: dir.path().to_owned() };
            Self { writer: Writer { shelf, limits, open: HashMap::new() }, machine: MachineId::generate(), _dir: dir }
        }

        fn tell(&mut self, at: Millis, order: Order) {
            self.writer.take(Letter { machine: self.machine, at, order });
        }

        fn text(&mut self, at: Millis, text: &str) {
            self.tell(at, Order::Text(text.into()));
        }

        fn read(&self, boot: Option<Millis>, offset: u64) -> Piece {
            self.writer.shelf.read(self.machine, boot, offset, 1 << 20).unwrap()
        }

        fn files(&self) -> Vec<String> {
            let folder = fs::read_dir(self.writer.shelf.folder(self.machine)).unwrap();
            let mut names: Vec<String> = folder.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    fn entry(at: Millis, offset: u64, note: Option<&str>) -> Entry {
        Entry { at, offset, note: note.map(str::to_owned) }
    }

    #[test]
    fn text_comes_back_with_its_times_and_notes() {
        let mut desk = Desk::new(Limits::default());
        desk.text(5, "before any boot");
        desk.tell(1000, Order::Begin { again: false });
        assert!(!desk.writer.shelf.folder(desk.machine).exists(), "a silent machine costs no file");
        assert_eq!(desk.writer.shelf.read(desk.machine, None, 0, 9).unwrap_err().code(), "console.empty");
        desk.text(2000, "GRUB\r\n");
        desk.text(2100, "loading");
        desk.tell(3000, Order::Note("silent for 3 s".into()));
        desk.text(4500, "login: ");
        let piece = desk.read(None, 0);
        assert_eq!((piece.bytes.as_slice(), piece.next, piece.end), (&b"GRUB\r\nloadinglogin: "[..], 20, 20));
        let all = [entry(2000, 0, None), entry(3000, 13, Some("silent for 3 s")), entry(4500, 13, None)];
        assert_eq!(piece.entries, all);
        let tail = desk.read(Some(1000), 16);
        assert_eq!((tail.bytes.as_slice(), tail.entries.as_slice()), (&b"in: "[..], &[entry(4500, 13, None)][..]));
        // Closed, it is compressed and reads the same.
        desk.tell(9000, Order::End);
        assert_eq!(desk.files(), ["1000-000.idx", "1000-000.log.zst"]);
        assert_eq!(desk.read(None, 0).bytes, piece.bytes);
        let boots = desk.writer.shelf.boots(desk.machine).unwrap();
        assert!(matches!(boots[..], [Boot { started: 1000, last: 9000, printed: 20, .. }]), "{boots:?}");
        assert_eq!(desk.read(None, 99).bytes, b"");
        assert_eq!(desk.writer.shelf.read(desk.machine, Some(7), 0, 9).unwrap_err().code(), "console.boot");
    }

    #[test]
    fn a_boot_keeps_its_beginning_and_its_end() {
        let mut desk = Desk::new(SMALL);
        desk.tell(1000, Order::Begin { again: false });
        desk.text(1500, &"a".repeat(250));
        desk.text(5000, &"b".repeat(300));
        assert_eq!(desk.read(None, 0).bytes, "a".repeat(100).into_bytes());
        // 550 bytes are six parts, of which the first and the last two are kept.
        let piece = desk.read(None, 100);
        assert_eq!((piece.offset, piece.end), (400, 550));
        assert_eq!((piece.bytes, piece.next), ("b".repeat(100).into_bytes(), 500));
        assert_eq!(desk.read(None, 500).bytes.len(), 50);
        assert_eq!(desk.files().iter().filter(|name| name.ends_with(".zst")).count(), 2);
    }

    #[test]
    fn old_boots_go_and_a_restart_goes_on_where_it_was() {
        let mut desk = Desk::new(SMALL);
        for boot in [1000, 2000, 3000] {
            desk.tell(boot, Order::Begin { again: false });
            desk.text(boot + 1, &format!("boot {boot}"));
        }
        let started: Vec<Millis> =
            desk.writer.shelf.boots(desk.machine).unwrap().iter().map(|boot| boot.started).collect();
        assert_eq!(started, [2000, 3000]);
        // The appliance is killed and started again.
        desk.writer.open.clear();
        desk.tell(4000, Order::Begin { again: true });
        desk.text(4001, ", again");
        assert_eq!(desk.read(None, 0).bytes, b"boot 3000");
        assert_eq!(desk.read(Some(3000), 9).bytes, b", again");
        // Where it is recorded already, there is nothing to go on with.
        desk.tell(5000, Order::Begin { again: true });
        desk.text(5001, "!");
        assert_eq!(desk.read(None, 9).bytes, b", again!");
    }

    #[test]
    fn broken_files_of_the_folder_are_passed_over() {
        let mut desk = Desk::new(SMALL);
        desk.tell(1000, Order::Begin { again: false });
        desk.text(1001, "fine");
        let folder = desk.writer.shelf.folder(desk.machine);
        for name in ["x", "a-b.log", "9-9.tmp", "1000-000.half"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        fs::write(folder.join("1000-001.log.zst"), "not zstd").unwrap();
        fs::write(folder.join("1000-001.idx"), "x\n1 2 3\n99999999999999999999 4\n\n1002 500").unwrap();
        assert_eq!(desk.read(None, 0).bytes, b"fine");
        assert_eq!(desk.writer.shelf.read(desk.machine, None, 300, 10).unwrap_err().code(), "console.read");
    }

    #[test]
    fn a_full_disk_ends_nothing() {
        let mut desk = Desk::new(SMALL);
        desk.tell(1000, Order::Begin { again: false });
        // A file where the folder should be.
        fs::write(desk.writer.shelf.folder(desk.machine), "").unwrap();
        desk.text(1001, "lost");
        fs::remove_file(desk.writer.shelf.folder(desk.machine)).unwrap();
        desk.text(1002, "kept");
        assert_eq!(desk.read(None, 0).bytes, b"kept");
    }
}
