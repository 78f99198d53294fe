//! The profiles of a burn-in that come with this release: `templates/burn/*.toml`.

use crate::error::{Error, Kind, OrFail, Result};
use crate::link::BurnProfile;

const PROFILES: &[(&str, &str)] = &[
    ("quick", include_str!("../../templates/burn/quick.toml")),
    ("standard", include_str!("../../templates/burn/standard.toml")),
    ("soak", include_str!("../../templates/burn/soak.toml")),
    ("lab", include_str!("../../templates/burn/lab.toml")),
];

/// A day of rounds of an hour and a half is 16.
const ROUNDS: u32 = 100;
/// No test is longer: after it the machine counts as lost.
const LONGEST: u32 = 24 * 3600;
/// What does not leave the test enough memory to run in.
const SHARE: std::ops::RangeInclusive<u8> = 1..=97;

/// The profile of this name.
pub fn profile(name: &str) -> Result<BurnProfile> {
    let Some((_, text)) = PROFILES.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = PROFILES.iter().map(|(name, _)| *name).filter(|name| *name != "lab").collect();
        return Err(Error::input("burn.profile", format!("there is no burn-in profile {name:?}"))
            .hint(format!("there are {}", names.join(", "))));
    };
    parse(name, text)
}

fn parse(name: &str, text: &str) -> Result<BurnProfile> {
    let wrong = || format!("templates/burn/{name}.toml is not a burn-in profile");
    let mut profile: BurnProfile = toml::from_str(text).or_fail(Kind::Config, "burn.profile", wrong)?;
    profile.name = name.to_owned();
    let refuse = |why: String| Err(Error::config("burn.profile", format!("{}: {why}", wrong())));
    if !(1..=ROUNDS).contains(&profile.rounds) {
        return refuse(format!("rounds is {}, not 1 to {ROUNDS}", profile.rounds));
    }
    if !SHARE.contains(&profile.memory.share_percent) {
        let share = profile.memory.share_percent;
        return refuse(format!("memory.share_percent is {share}, not {} to {}", SHARE.start(), SHARE.end()));
    }
    if let Some(test) = profile.tests().iter().find(|test| profile.seconds(test) > LONGEST) {
        return refuse(format!("{test} takes more than a day"));
    }
    // They become words of a command line.
    let word =
        |stressor: &String| !stressor.is_empty() && stressor.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    match profile.cpu.stressors.iter().find(|stressor| !word(stressor)) {
        Some(stressor) => refuse(format!("{stressor:?} is not a stressor of stress-ng")),
        None => Ok(profile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ships_takes_the_time_that_it_says() {
        for (name, at_most) in [("quick", 130), ("standard", 45 * 60), ("soak", 26 * 3600), ("lab", 15)] {
            let profile = profile(name).unwrap();
            let all: u32 = profile.tests().iter().map(|test| profile.seconds(test)).sum();
            assert!(all <= at_most && all >= at_most / 2, "{name}: {all} s");
        }
        assert_eq!(profile("slow").unwrap_err().next_step(), Some("there are quick, standard, soak"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let text = PROFILES[0].1;
        for (key, wrong, word) in [
            ("rounds = 1", "rounds = 0", "rounds is 0"),
            ("share_percent = 95", "share_percent = 100", "share_percent is 100"),
            ("share_percent = 95", "share = 95", "share"),
            ("wait_seconds = 20", "wait_seconds = 90000", "network takes more than a day"),
            ("\"matrix\"", "\"matrix; reboot\"", "not a stressor"),
        ] {
            let changed = text.replace(key, wrong);
            assert_ne!(changed, text);
            let error = parse("t", &changed).unwrap_err();
            let said = format!("{error} {:?}", error.causes());
            assert!(said.contains(word), "{said}");
        }
    }
}
