//! The system event log (sections 31 and 32). [`super::records::Walk`] reads the entries; here is what they say, the
//! log's state and clock, and how it is cleared.

use super::event::Event;
use super::message::{Ask, Fields, Request, netfn};
use super::sdr::Sensor;
use super::sensor::Level;
use super::text::{hex, latin, printable};

/// Get SEL Info (31.2).
pub struct GetInfo;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub entries: u16,
    /// Bytes; 0xffff stands for that many or more.
    pub free: u16,
    /// Times of the last entry and of the last erasure, as the BMC counts them.
    pub added: u32,
    pub erased: u32,
    /// Events were lost, because the log was full.
    pub overflow: bool,
}

impl Ask for GetInfo {
    const NAME: &'static str = "Get SEL Info";
    type Answer = Info;

    fn request(&self) -> Request {
        Request::new(netfn::STORAGE, 0x40, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Info> {
        let (_version, entries, free) = (data.u8()?, data.u16()?, data.u16()?);
        let (added, erased, support) = (data.u32()?, data.u32()?, data.u8()?);
        Some(Info { entries, free, added, erased, overflow: support & 0x80 != 0 })
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        erasing(code)
    }
}

fn erasing(code: u8) -> Option<&'static str> {
    (code == 0x81).then_some("the log is being erased")
}

/// Get SEL Time (31.10): seconds since 1970.
pub struct GetTime;

impl Ask for GetTime {
    const NAME: &'static str = "Get SEL Time";
    type Answer = u32;

    fn request(&self) -> Request {
        Request::new(netfn::STORAGE, 0x48, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<u32> {
        data.u32()
    }
}

/// Set SEL Time (31.11).
pub struct SetTime(pub u32);

impl Ask for SetTime {
    const NAME: &'static str = "Set SEL Time";
    type Answer = ();

    fn request(&self) -> Request {
        Request::new(netfn::STORAGE, 0x49, self.0.to_le_bytes())
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// Reserve SEL (31.4): clearing needs it, and fails when somebody added an entry or cleared since.
pub struct Reserve;

impl Ask for Reserve {
    const NAME: &'static str = "Reserve SEL";
    type Answer = u16;

    fn request(&self) -> Request {
        Request::new(netfn::STORAGE, 0x42, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<u16> {
        data.u16()
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        erasing(code)
    }
}

/// Clear SEL (31.9): starts the erasure, or asks how far it is.
pub struct Clear {
    pub reservation: u16,
    pub start: bool,
}

impl Ask for Clear {
    const NAME: &'static str = "Clear SEL";
    /// Whether the erasure is complete.
    type Answer = bool;

    fn request(&self) -> Request {
        let [r0, r1] = self.reservation.to_le_bytes();
        let operation = if self.start { 0xaa } else { 0x00 };
        Request::new(netfn::STORAGE, 0x47, [r0, r1, b'C', b'L', b'R', operation])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<bool> {
        data.u8().map(|progress| progress & 0xf == 1)
    }
}

/// When something happened, by the clock of the BMC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Seconds since 1970.
    At(u32),
    /// Seconds since the BMC started: its clock had not been set yet (section 37.1).
    SinceStart(u32),
    Unknown,
}

const UNSPECIFIED: u32 = 0xffff_ffff;
const SINCE_START_MAX: u32 = 0x2000_0000;

impl When {
    pub fn from_seconds(seconds: u32) -> Self {
        match seconds {
            UNSPECIFIED => Self::Unknown,
            0..=SINCE_START_MAX => Self::SinceStart(seconds),
            _ => Self::At(seconds),
        }
    }
}

/// An entry (table 32-1 to 32-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub id: u16,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Event {
        when: When,
        event: Event,
    },
    /// A maker's own, by its IANA number.
    Timed {
        kind: u8,
        when: When,
        maker: u32,
        data: [u8; 6],
    },
    Untimed {
        kind: u8,
        data: [u8; 13],
    },
}

impl Entry {
    /// `None` for bytes that are too short, and for the record types that the specification keeps back.
    pub fn parse(record: &[u8]) -> Option<Self> {
        let mut fields = Fields(record);
        let (id, kind) = (fields.u16()?, fields.u8()?);
        let what = match kind {
            0x02 => {
                let when = When::from_seconds(fields.u32()?);
                let [generator, channel_lun, _version, sensor_kind, number, direction] = fields.array()?;
                let event = Event {
                    generator,
                    lun: channel_lun & 3,
                    kind: sensor_kind,
                    number,
                    reading_type: direction & 0x7f,
                    asserted: direction & 0x80 == 0,
                    data: fields.array()?,
                };
                What::Event { when, event }
            }
            0xc0..=0xdf => {
                let when = When::from_seconds(fields.u32()?);
                let [a, b, c] = fields.array()?;
                What::Timed { kind, when, maker: u32::from_le_bytes([a, b, c, 0]), data: fields.array()? }
            }
            0xe0..=0xff => What::Untimed { kind, data: fields.array()? },
            _ => return None,
        };
        Some(Self { id, what })
    }

    pub fn when(&self) -> When {
        match self.what {
            What::Event { when, .. } | What::Timed { when, .. } => when,
            What::Untimed { .. } => When::Unknown,
        }
    }

    pub fn level(&self) -> Level {
        match self.what {
            What::Event { event, .. } => event.level(),
            What::Timed { .. } => Level::Ok,
            What::Untimed { kind: PANIC, .. } => Level::Critical,
            What::Untimed { .. } => Level::Ok,
        }
    }

    /// `name` and `sensor` are those of the event's sensor; entries of other kinds have none.
    pub fn sentence(&self, name: &str, sensor: Option<&Sensor>) -> String {
        match self.what {
            What::Event { event, .. } => event.sentence(name, sensor),
            What::Timed { kind, maker, data, .. } => {
                format!("own record of the maker (type 0x{kind:02x}, IANA number {maker}): {}", hex(&data))
            }
            // The Linux kernel writes its last words in pieces of eleven characters, behind its address and a number.
            What::Untimed { kind: PANIC, data } => {
                let [_, part, text @ ..] = &data;
                format!("kernel panic, part {part}: {}", printable(&latin(text)))
            }
            What::Untimed { kind, data } => format!("own record of the maker (type 0x{kind:02x}): {}", hex(&data)),
        }
    }
}

/// Record type of `ipmi_msghandler` for the text of a kernel panic.
const PANIC: u8 = 0xf0;

#[cfg(test)]
mod tests {
    use super::super::message::tests::{parse, survives_truncation};
    use super::*;

    #[test]
    fn state_clock_and_clearing() {
        let data = [0x51, 3, 0, 0xf0, 0x3f, 1, 2, 3, 4, 5, 6, 7, 8, 0x82];
        let info = parse(&GetInfo, &data).unwrap();
        assert_eq!((info.entries, info.free, info.overflow), (3, 0x3ff0, true));
        assert_eq!((info.added, info.erased), (0x0403_0201, 0x0807_0605));
        survives_truncation(&GetInfo, &data);
        assert_eq!(SetTime(0x0102_0304).request().data, [4, 3, 2, 1]);
        let clear = Clear { reservation: 0x0201, start: true };
        assert_eq!(clear.request().data, [1, 2, b'C', b'L', b'R', 0xaa]);
        assert_eq!((parse(&clear, &[0x10]), parse(&clear, &[0x11])), (Some(false), Some(true)));
    }

    #[test]
    fn three_forms_of_entries() {
        let event = [7, 0, 2, 0x00, 0x6d, 0x5e, 0x69, 0x20, 0, 4, 0x08, 0x62, 0xef, 3, 0xff, 0xff];
        let entry = Entry::parse(&event).unwrap();
        assert_eq!((entry.id, entry.when()), (7, When::At(0x695e_6d00)));
        assert_eq!(entry.sentence("PS1", None), "PS1: power input lost, which has ended");
        let timed = [8, 0, 0xc1, 5, 0, 0, 0, 0xa2, 0x02, 0, 1, 2, 3, 4, 5, 6];
        let entry = Entry::parse(&timed).unwrap();
        assert_eq!(entry.when(), When::SinceStart(5));
        assert_eq!(entry.sentence("", None), "own record of the maker (type 0xc1, IANA number 674): 01 02 03 04 05 06");
        let panic = [&[9, 0, 0xf0, 0x20, 2][..], b"Fatal excep"].concat();
        let entry = Entry::parse(&panic).unwrap();
        assert_eq!((entry.when(), entry.level()), (When::Unknown, Level::Critical));
        assert_eq!(entry.sentence("", None), "kernel panic, part 2: Fatal excep");
        for end in 0..16 {
            assert_eq!(Entry::parse(&event[..end]), None);
        }
        assert_eq!(Entry::parse(&[1; 16]), None, "a type that the specification keeps back");
    }
}
