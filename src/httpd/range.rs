//! The `Range` header of a request (RFC 9110 section 14.2), for one file of known size.

/// Which bytes are to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: the header asks for no bytes, or for several ranges at once, which RFC 9110 lets a server not split up.
    Whole,
    /// From `first` to `last`, both inclusive; `first <= last < size`.
    Part { first: u64, last: u64 },
    /// No byte of the file is meant, or nothing that can be read: status 416.
    Unsatisfiable,
}

/// `value` is what stands behind `Range:`. Positions past `u64::MAX` count as that: no file is so long.
pub fn wanted(value: &[u8], size: u64) -> Wanted {
    let Some((unit, set)) = split_once(value, b'=') else { return Wanted::Unsatisfiable };
    if !unit.trim_ascii().eq_ignore_ascii_case(b"bytes") {
        return Wanted::Whole;
    }
    let mut specs = set.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|spec| !spec.is_empty()).map(Spec::parse);
    match (specs.next(), specs.next()) {
        (Some(Some(spec)), None) => spec.of(size),
        (Some(Some(_)), Some(second)) if second.is_some() && specs.all(|spec| spec.is_some()) => Wanted::Whole,
        _ => Wanted::Unsatisfiable,
    }
}

/// RFC 9110 section 14.1.2.
enum Spec {
    /// `first-` or `first-last`.
    From { first: u64, last: u64 },
    /// `-length`: so many bytes at the end.
    Suffix { length: u64 },
}

impl Spec {
    fn parse(text: &[u8]) -> Option<Self> {
        let (first, last) = split_once(text, b'-')?;
        match (first.is_empty(), last.is_empty()) {
            (true, _) => Some(Self::Suffix { length: number(last)? }),
            (false, true) => Some(Self::From { first: number(first)?, last: u64::MAX }),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From { first, last })
            }
        }
    }

    fn of(self, size: u64) -> Wanted {
        let (first, last) = match self {
            Self::From { first, last } => (first, last.min(size.saturating_sub(1))),
            // `Content-Range` cannot say "no bytes", so the end of an empty file is the whole file.
            Self::Suffix { length } if size == 0 && length > 0 => return Wanted::Whole,
            Self::Suffix { length: 0 } => return Wanted::Unsatisfiable,
            Self::Suffix { length } => (size.saturating_sub(length), size.saturating_sub(1)),
        };
        if first < size { Wanted::Part { first, last } } else { Wanted::Unsatisfiable }
    }
}

/// One or more digits.
fn number(digits: &[u8]) -> Option<u64> {
    let fits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    fits.then(|| digits.iter().fold(0u64, |n, d| n.saturating_mul(10).saturating_add(u64::from(d - b'0'))))
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|b| *b == at)?;
    Some((text.get(..position)?, text.get(position + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9110() {
        let part = |first, last| Wanted::Part { first, last };
        for (value, expected) in [
            ("bytes=0-499", part(0, 499)),
            ("bytes=500-999", part(500, 999)),
            ("bytes=-500", part(9500, 9999)),
            ("bytes=9500-", part(9500, 9999)),
            ("bytes=0-0,-1", Wanted::Whole),
            ("bytes= 0-0, , -1", Wanted::Whole),
            ("Bytes=,9999-10000", part(9999, 9999)),
            ("bytes=-10001", part(0, 9999)),
            ("lines=1-2", Wanted::Whole),
        ] {
            assert_eq!(wanted(value.as_bytes(), 10_000), expected, "{value}");
        }
    }

    #[test]
    fn what_cannot_be_met_or_read() {
        let wrong = [
            "bytes=10000-",
            "bytes=5-2",
            "bytes=-0",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes",
            "",
            "bytes=a-b",
            "bytes=1",
            "bytes=+1-2",
            "bytes=1 -2",
            "bytes=0x1-2",
            "bytes=0-1,5-2",
            "bytes=0-1-2",
            "bytes=0-1;2-3",
            "bytes==0-1",
            "bytes=99999999999999999999999999-",
        ];
        for value in wrong {
            assert_eq!(wanted(value.as_bytes(), 10_000), Wanted::Unsatisfiable, "{value}");
        }
        assert_eq!(wanted(b"bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(wanted(b"bytes=-5", 0), Wanted::Whole);
        let overflow = wanted(b"bytes=1-99999999999999999999999999", 10_000);
        assert_eq!(overflow, Wanted::Part { first: 1, last: 9999 });
    }

    /// The slow way: which positions of the file does the header name?
    fn model(specs: &[(Option<u128>, Option<u128>)], size: u64) -> Wanted {
        let longest = u128::from(u64::MAX);
        let backwards =
            |(a, b): &(Option<u128>, Option<u128>)| matches!((a, b), (Some(a), Some(b)) if a.min(&longest) > b);
        let nothing = |spec: &(Option<u128>, Option<u128>)| *spec == (None, None);
        if specs.is_empty() || specs.iter().any(|spec| backwards(spec) || nothing(spec)) {
            return Wanted::Unsatisfiable;
        }
        let [(first, last)] = specs else { return Wanted::Whole };
        let named: Vec<u64> = (0..size)
            .filter(|at| match (*first, *last) {
                (Some(first), last) => u128::from(*at) >= first && last.is_none_or(|last| u128::from(*at) <= last),
                (None, length) => u128::from(size - at) <= length.unwrap_or(0),
            })
            .collect();
        match (named.first(), named.last()) {
            (Some(first), Some(last)) => Wanted::Part { first: *first, last: *last },
            _ if size == 0 && first.is_none() && *last != Some(0) => Wanted::Whole,
            _ => Wanted::Unsatisfiable,
        }
    }

    fn position() -> impl Strategy<Value = Option<u128>> {
        prop_oneof![
            Just(None),
            (0u128..40).prop_map(Some),
            (u128::from(u64::MAX) - 2..u128::from(u64::MAX) + 3).prop_map(Some),
            any::<u128>().prop_map(Some),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(
            specs in prop::collection::vec((position(), position()), 0..4),
            separator in prop_oneof![Just(","), Just(" , "), Just(",,\t")],
            size in 0u64..30,
        ) {
            let show = |n: &Option<u128>| n.map(|n| n.to_string()).unwrap_or_default();
            let text: Vec<_> = specs.iter().map(|(a, b)| format!("{}-{}", show(a), show(b))).collect();
            let value = format!("bytes={}", text.join(separator));
            prop_assert_eq!(wanted(value.as_bytes(), size), model(&specs, size), "{}", value);
        }

        #[test]
        fn any_bytes_are_answered_within_the_file(value in prop::collection::vec(any::<u8>(), 0..40), size in any::<u64>()) {
            let mut named = b"bytes=".to_vec();
            named.extend(&value);
            for value in [value, named] {
                if let Wanted::Part { first, last } = wanted(&value, size) {
                    prop_assert!(first <= last && last < size);
                }
            }
        }
    }
}
