//! Which of two firmware versions is newer. Vendors write them as they like: `2.10.2`, `6.00.30.00`, `U30 v2.42 (09/29/2020)`,
//! `4301A56`, `S2B_3A17`.

use std::cmp::Ordering;

#[derive(Debug, PartialEq, Eq)]
enum Run<'a> {
    /// Without leading zeros, so that the longer one is the greater.
    Digits(&'a str),
    Letters(String),
}

/// Runs of digits are compared as numbers, runs of letters as words, what stands between is not. Missing numbers at the end
/// are zeros: 2.10 is 2.10.0. `None` where a number stands against a word: two schemes, of which nobody can say which is newer.
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
    let (a, b) = (runs(a), runs(b));
    for at in 0..a.len().max(b.len()) {
        let order = match (a.get(at), b.get(at)) {
            (Some(Run::Digits(a)), Some(Run::Digits(b))) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
            (Some(Run::Letters(a)), Some(Run::Letters(b))) => a.cmp(b),
            (Some(Run::Digits("")), None) | (None, Some(Run::Digits(""))) => Ordering::Equal,
            (Some(_), None) => Ordering::Greater,
            (None, Some(_)) => Ordering::Less,
            _ => return None,
        };
        if order.is_ne() {
            return Some(order);
        }
    }
    Some(Ordering::Equal)
}

/// The same version, however it is written.
pub fn same(a: &str, b: &str) -> bool {
    compare(a, b) == Some(Ordering::Equal)
}

fn runs(text: &str) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let kind = |c: char| (c.is_ascii_digit(), c.is_alphabetic());
        let end = rest.find(|c| kind(c) != kind(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        match kind(first) {
            (true, _) => runs.push(Run::Digits(run.trim_start_matches('0'))),
            // "v2.42" and "2.42" are one version.
            (_, true) if !run.eq_ignore_ascii_case("v") => runs.push(Run::Letters(run.to_lowercase())),
            _ => {}
        }
        rest = after;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numbers_and_words_are_words() {
        use Ordering::{Equal, Greater, Less};
        for (a, b, order) in [
            ("1.8.2", "1.10.2", Some(Less)),
            ("6.00.30.00", "6.0.30", Some(Equal)),
            ("7.00.00.171", "6.10.80.00", Some(Greater)),
            ("U30 v2.42 (09/29/2020)", "U30 v2.36 (07/16/2020)", Some(Greater)),
            ("v2.42", "2.42", Some(Equal)),
            ("4301A56", "4301A57", Some(Less)),
            ("S2B_3A17", "S2B_3A23", Some(Less)),
            ("00.2A.2B", "00.2A.2C", Some(Less)),
            ("2.1.3", "GDC5602Q", None),
            ("99999999999999999999999", "100000000000000000000000", Some(Less)),
            ("", "", Some(Equal)),
        ] {
            assert_eq!(compare(a, b), order, "{a} and {b}");
            assert_eq!(compare(b, a), order.map(Ordering::reverse), "{b} and {a}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_a_bmc_says_is_too_strange(a: String, b: String) {
            proptest::prop_assert_eq!(compare(&a, &b), compare(&b, &a).map(Ordering::reverse));
            proptest::prop_assert!(same(&a, &a));
        }
    }
}
