//! Files of lines that survive a power cut: what was appended is on the disk when [`Journal::append`] returns.
//!
//! The DHCP server writes a lease for every address it gives, thousands a second when a room is powered on, and reads them
//! back once, at its next start. A database sells indexes and transactions for that, at half of the server's CPU time; here
//! a group of leases is one write and one `fdatasync`.
//!
//! A folder holds files with rising numbers, and only the last one grows. What has a later place wins, so the files up to a
//! number may be replaced by one of the same number that says only what still counts ([`Journal::fold`]): first the new
//! file takes the place of the last of them, then the others go, and at every moment between the folder says the same.
//! A file ends with empty lines that were written in advance, so that appending changes no length: that would cost a second
//! write, of the file system's own journal. Each line carries its checksum; one that was cut off by a power cut, and was
//! never acknowledged, is left out when it is read.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tracing::warn;

use crate::durable;

/// Written in advance, in bytes: some ten thousand lines. It takes as long as some ten appends, so it is done rarely, and for
/// a new file before anybody waits for it.
const AHEAD: usize = if cfg!(test) { 64 << 10 } else { 4 << 20 };
/// A file grows to this size, or to four times what is left of it, before it is folded.
const FOLD: u64 = 16 << 20;

/// Takes every line in the order of writing, and gives those that still count.
pub type Fold = fn(Vec<String>) -> Vec<String>;

pub struct Journal {
    folder: PathBuf,
    fold: Fold,
    number: u64,
    file: File,
    /// Where the next line goes, and how far empty lines are written.
    end: u64,
    ready: u64,
    /// Size of the file at which everything is folded.
    full: u64,
    /// With the size of what is left, once it ends.
    folding: Option<JoinHandle<u64>>,
    /// An append failed: what the file holds behind `end` is not known.
    failed: bool,
}

impl Journal {
    /// Makes the folder where it is missing, folds what is there, and gives it with the journal to append to.
    pub fn open(folder: &Path, fold: Fold) -> io::Result<(Self, Vec<String>)> {
        std::fs::create_dir_all(folder)?;
        // The folder itself must outlast a power cut, too.
        durable::sync_folder(folder)?;
        let numbers = numbers(folder)?;
        let lines = folded(folder, &numbers, fold)?;
        let last = numbers.last().copied().unwrap_or(0);
        let size = if numbers.is_empty() { 0 } else { replace(folder, &numbers, &lines)? };
        let number = last + 1;
        let journal = Self {
            file: begin(folder, number)?,
            folder: folder.to_owned(),
            fold,
            number,
            end: 0,
            ready: AHEAD as u64,
            full: FOLD.max(4 * size),
            folding: None,
            failed: false,
        };
        Ok((journal, lines))
    }

    /// Every line that still counts, without changing anything.
    pub fn read(folder: &Path, fold: Fold) -> io::Result<Vec<String>> {
        folded(folder, &numbers(folder)?, fold)
    }

    /// Lines with their ends, made by [`seal`]. After an error none of them, or some, are on disk.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.failed || self.end > self.full {
            self.next_file()?;
        }
        let appended = self.write(lines);
        self.failed = appended.is_err();
        appended
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let end = self.end + lines.len() as u64;
        if end > self.ready {
            let blank = vec![b'\n'; AHEAD.max((end - self.ready) as usize)];
            self.file.write_all_at(&blank, self.ready)?;
            self.ready += blank.len() as u64;
        }
        self.file.write_all_at(lines, self.end)?;
        self.file.sync_data()?;
        self.end = end;
        Ok(())
    }

    /// What was written so far is folded beside the writing, unless that goes on already.
    fn next_file(&mut self) -> io::Result<()> {
        self.file = begin(&self.folder, self.number + 1)?;
        (self.number, self.end, self.ready) = (self.number + 1, 0, AHEAD as u64);
        if let Some(ended) = self.folding.take_if(|f| f.is_finished()) {
            self.full = FOLD.max(4 * ended.join().unwrap_or(0));
        }
        if self.folding.is_none() {
            let (folder, fold, last) = (self.folder.clone(), self.fold, self.number - 1);
            let work = move || {
                fold_up_to(&folder, last, fold).unwrap_or_else(|e| {
                    warn!(error = %e, folder = %folder.display(), "the journal cannot be folded, and grows on");
                    0
                })
            };
            self.folding = Some(std::thread::Builder::new().name("journal".into()).spawn(work)?);
        }
        Ok(())
    }
}

/// Whoever opens the folder next finds nobody at work in it.
impl Drop for Journal {
    fn drop(&mut self) {
        self.folding.take().map(JoinHandle::join);
    }
}

/// A line as it is stored: the text, which has no line break in it, and its checksum.
pub fn seal(text: &str, lines: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = writeln!(lines, "{text} {:08x}", crc32fast::hash(text.as_bytes()));
}

/// The text of a stored line; `None`: it is not what was written.
fn unseal(line: &str) -> Option<&str> {
    let (text, sum) = line.rsplit_once(' ')?;
    (u32::from_str_radix(sum, 16).ok()? == crc32fast::hash(text.as_bytes())).then_some(text)
}

fn name(number: u64) -> String {
    format!("{number:08}")
}

/// Of the files that are there, in order. Others, such as a half-made one, are not ours to read.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let found = entry?.file_name();
        let number = found.to_str().and_then(|n| n.parse().ok()).filter(|n| name(*n).as_str() == found);
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A file of empty lines, [`AHEAD`] long, that is there after a power cut.
fn begin(folder: &Path, number: u64) -> io::Result<File> {
    let path = folder.join(name(number));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    file.write_all(&vec![b'\n'; AHEAD])?;
    file.sync_all()?;
    durable::sync_folder(&path)?;
    Ok(file)
}

fn folded(folder: &Path, numbers: &[u64], fold: Fold) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    for path in numbers.iter().map(|number| folder.join(name(*number))) {
        let bytes = std::fs::read(&path)?;
        let mut lost = 0;
        for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            match std::str::from_utf8(line).ok().and_then(unseal) {
                Some(line) => lines.push(line.to_owned()),
                None => lost += 1,
            }
        }
        if lost > 0 {
            warn!(file = %path.display(), lost, "lines that cannot be read are left out; a power cut leaves such");
        }
    }
    Ok(fold(lines))
}

/// Puts a file with these lines in the place of all the numbered ones; its size.
fn replace(folder: &Path, numbers: &[u64], lines: &[String]) -> io::Result<u64> {
    let Some((last, others)) = numbers.split_last() else { return Ok(0) };
    let mut bytes = Vec::new();
    lines.iter().for_each(|line| seal(line, &mut bytes));
    durable::replace(&folder.join(name(*last)), &bytes)?;
    for number in others {
        std::fs::remove_file(folder.join(name(*number)))?;
    }
    Ok(bytes.len() as u64)
}

fn fold_up_to(folder: &Path, last: u64, fold: Fold) -> io::Result<u64> {
    let numbers: Vec<u64> = numbers(folder)?.into_iter().filter(|n| *n <= last).collect();
    replace(folder, &numbers, &folded(folder, &numbers, fold)?)
}

#[cfg(test)]
impl Journal {
    /// The file is open for reading only from now on, so writing fails.
    pub fn takes_nothing(&mut self) {
        self.file = File::open(self.folder.join(name(self.number))).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What counts for a word is the last line that begins with it.
    fn last(lines: Vec<String>) -> Vec<String> {
        let mut kept: Vec<String> = Vec::new();
        for line in lines {
            kept.retain(|k| k.split(' ').next() != line.split(' ').next());
            kept.push(line);
        }
        kept.sort();
        kept
    }

    fn append(journal: &mut Journal, lines: &[&str]) {
        let mut bytes = Vec::new();
        lines.iter().for_each(|line| seal(line, &mut bytes));
        journal.append(&bytes).unwrap();
    }

    fn open(dir: &tempfile::TempDir) -> (Journal, Vec<String>) {
        Journal::open(dir.path(), last).unwrap()
    }

    #[test]
    fn the_last_line_counts_across_files_and_starts() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, lines) = open(&dir);
        assert!(lines.is_empty());
        append(&mut journal, &["a 1", "b 1"]);
        append(&mut journal, &["a 2"]);
        let (mut journal, lines) = open(&dir);
        assert_eq!(lines, ["a 2", "b 1"]);
        append(&mut journal, &["b 3"]);
        assert_eq!(Journal::read(dir.path(), last).unwrap(), ["a 2", "b 3"]);
        assert_eq!(numbers(dir.path()).unwrap(), [1, 2], "what was there is one file, and the growing one");
    }

    #[test]
    fn whatever_was_acknowledged_is_there_wherever_the_rest_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(&dir);
        append(&mut journal, &["a 1"]);
        append(&mut journal, &["b 1", "c 1"]);
        let whole = std::fs::read(dir.path().join(name(1))).unwrap();
        assert_eq!(whole.len(), AHEAD, "written in advance");
        let mut first = Vec::new();
        seal("a 1", &mut first);
        let end = whole.iter().rposition(|b| *b != b'\n').unwrap() + 1;
        // The power fails while the second append is on its way to the disk: any part of it may be there, or any part not.
        for cut in first.len()..=end {
            for torn in [
                whole[..cut].to_vec(),
                [&whole[..cut], &vec![b'\n'; 40][..]].concat(),
                [&whole[..cut], &vec![0; 40][..]].concat(),
                [&whole[..first.len()], &vec![b'\n'; cut - first.len()][..], &whole[cut..end]].concat(),
            ] {
                let dir = tempfile::tempdir().unwrap();
                std::fs::write(dir.path().join(name(1)), torn).unwrap();
                let (mut journal, lines) = open(&dir);
                assert_eq!(lines[0], "a 1", "cut at {cut}");
                assert!(lines[1..].iter().all(|l| l == "b 1" || l == "c 1"), "cut at {cut}: {lines:?}");
                append(&mut journal, &["d 1"]);
                assert_eq!(Journal::read(dir.path(), last).unwrap().len(), lines.len() + 1);
            }
        }
    }

    #[test]
    fn a_changed_byte_costs_its_line_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        append(&mut open(&dir).0, &["a 1", "b 1", "c 1"]);
        let path = dir.path().join(name(1));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(3).position(|w| w == b"b 1").unwrap();
        bytes[at + 2] = b'7';
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(open(&dir).1, ["a 1", "c 1"]);
    }

    #[test]
    fn folding_goes_on_beside_the_writing_and_leaves_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(&dir);
        journal.full = 3000;
        for n in 0..2000 {
            append(&mut journal, &[&format!("{} {n}", n % 7)]);
        }
        drop(journal);
        assert!(numbers(dir.path()).unwrap().len() < 10, "{:?}", numbers(dir.path()));
        let kept: Vec<String> = (1993..2000).map(|n| format!("{} {n}", n % 7)).collect();
        assert_eq!(open(&dir).1, last(kept));
    }

    #[test]
    fn at_every_step_of_a_fold_the_folder_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let say = |number: u64, lines: &[&str]| {
            let mut bytes = Vec::new();
            lines.iter().for_each(|line| seal(line, &mut bytes));
            std::fs::write(dir.path().join(name(number)), bytes).unwrap();
        };
        say(1, &["a 1", "b 1"]);
        say(2, &["a 2"]);
        say(3, &["c 1"]);
        // Not yet renamed; renamed, and the others are still there; one of them gone.
        std::fs::write(dir.path().join("new"), b"a 2 ").unwrap();
        let truth = Journal::read(dir.path(), last).unwrap();
        say(2, &["a 2", "b 1"]);
        assert_eq!(Journal::read(dir.path(), last).unwrap(), truth);
        std::fs::remove_file(dir.path().join(name(1))).unwrap();
        assert_eq!(Journal::read(dir.path(), last).unwrap(), truth);
    }

    #[test]
    fn after_a_failed_write_nothing_is_added_to_that_file() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(&dir);
        append(&mut journal, &["a 1"]);
        journal.takes_nothing();
        assert!(journal.append(b"x\n").is_err());
        append(&mut journal, &["b 1"]);
        drop(journal);
        assert_eq!(open(&dir).1, ["a 1", "b 1"]);
    }
}
