//! What is learnt, told as boots, and what holds for every conversation.

use proptest::prelude::*;

use super::*;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|n| Name::from(*n)).collect()
}

/// One boot as the servers see it. `starts` says which files work on this machine.
fn boot(card: &mut Card, candidates: &[Name], starts: impl Fn(&str) -> bool) -> (Name, Option<News>, Option<Started>) {
    let news = card.asks(candidates);
    let (loader, _) = card.choose(candidates).unwrap();
    card.offered(loader.clone());
    card.fetched(&loader);
    let started = if starts(&loader) { card.started() } else { None };
    (loader, news, started)
}

#[test]
fn the_next_one_is_tried_and_what_works_is_kept() {
    let candidates = names(&["snponly.efi", "ipxe.efi", "shimx64.efi"]);
    let mut card = Card::default();
    let ipxe_works = |name: &str| name == "ipxe.efi";
    assert_eq!(card.choose(&candidates), Some(("snponly.efi".into(), Why::First)));
    assert_eq!(boot(&mut card, &candidates, ipxe_works), ("snponly.efi".into(), None, None));
    let (loader, news, started) = boot(&mut card, &candidates, ipxe_works);
    assert_eq!(&*loader, "ipxe.efi");
    assert_eq!(news, Some(News::Stalled { loader: "snponly.efi".into(), next: "ipxe.efi".into() }));
    let news = Some(News::Works { loader: "ipxe.efi".into() });
    assert_eq!(started, Some(Started { loader: "ipxe.efi".into(), news }));
    // From now on it is first, and no longer worth a word.
    assert_eq!(card.choose(&candidates), Some(("ipxe.efi".into(), Why::Learnt)));
    assert_eq!(boot(&mut card, &candidates, ipxe_works), ("ipxe.efi".into(), None, None));
}

#[test]
fn nothing_is_learnt_from_a_boot_that_never_fetched() {
    let candidates = names(&["a", "b"]);
    let mut card = Card::default();
    for _ in 0..5 {
        assert_eq!(card.asks(&candidates), None);
        card.offered("a".into());
        card.fetched("grubx64.efi");
    }
    // QEMU's and many servers' ROMs are iPXE themselves: that it speaks says nothing of our file.
    assert_eq!(card.started(), None);
    assert_eq!(card.choose(&candidates), Some(("a".into(), Why::First)));
}

#[test]
fn one_reset_at_a_bad_moment_does_not_unlearn() {
    let candidates = names(&["a", "b"]);
    let mut card = Card::remembered("b".into());
    assert_eq!(boot(&mut card, &candidates, |_| false), ("b".into(), None, None));
    assert_eq!(boot(&mut card, &candidates, |_| true), ("b".into(), None, None), "still the learnt one");
    assert_eq!(boot(&mut card, &candidates, |_| false).0, "b".into());
    assert_eq!(boot(&mut card, &candidates, |_| false).0, "b".into());
    let (loader, news, _) = boot(&mut card, &candidates, |_| false);
    assert_eq!((&*loader, news), ("a", Some(News::Stalled { loader: "b".into(), next: "a".into() })));
}

#[test]
fn where_nothing_starts_it_is_said_once_and_tried_for_ever() {
    let candidates = names(&["a", "b"]);
    let mut card = Card::default();
    let mut offered = Vec::new();
    let mut said = Vec::new();
    for _ in 0..7 {
        let (loader, news, _) = boot(&mut card, &candidates, |_| false);
        offered.push(loader);
        said.extend(news);
    }
    assert_eq!(offered, names(&["a", "b", "a", "b", "a", "b", "a"]));
    let stalled = News::Stalled { loader: "a".into(), next: "b".into() };
    assert_eq!(said, [stalled, News::Exhausted { candidates: candidates.clone() }]);
    // The cause was mended: that is worth a word again.
    let (.., started) = boot(&mut card, &candidates, |_| true);
    assert!(started.is_some_and(|s| s.news.is_some()));
}

#[test]
fn one_candidate_alone_is_offered_again_and_the_operator_hears_of_it() {
    let candidates = names(&["a"]);
    let mut card = Card::default();
    boot(&mut card, &candidates, |_| false);
    let (loader, news, _) = boot(&mut card, &candidates, |_| false);
    assert_eq!((&*loader, news), ("a", Some(News::Exhausted { candidates: candidates.clone() })));
}

#[test]
fn what_was_learnt_counts_only_where_it_is_a_candidate() {
    let card = Card::remembered("ipxe.efi".into());
    assert_eq!(card.choose(&names(&["undionly.kpxe"])), Some(("undionly.kpxe".into(), Why::First)));
    assert_eq!(card.choose(&[]), None);
}

#[test]
fn a_fetch_is_put_down_to_the_card_that_has_the_address() {
    let candidates = names(&["a", "b"]);
    let address: IpAddr = "10.77.2.1".parse().unwrap();
    let mut book = Book::new(16, []);
    book.offered(MAC, Some(address), "a".into());
    book.fetched(book.owner(address).unwrap(), "a");
    assert_eq!(book.owner("10.77.2.2".parse().unwrap()), None);
    assert!(book.asks(MAC, &candidates).is_some());
    assert_eq!(book.card(MAC).choose(&candidates), Some(("b".into(), Why::OthersStalled)));
    assert_eq!(book.card(MAC).stalled(), [Name::from("a")]);
}

#[test]
fn a_flood_of_made_up_addresses_neither_grows_the_book_nor_unlearns_what_works() {
    let candidates = names(&["a", "b"]);
    let mut book = Book::new(64, [(MAC, Name::from("b"))]);
    for n in 0..10_000u32 {
        let [a, b, c, d] = n.to_be_bytes();
        book.offered(MacAddr([2, 0, a, b, c, d]), Some(IpAddr::from([a, b, c, d])), "a".into());
        assert!(book.cards.len() <= 64 && book.addresses.len() <= 64 && book.works.len() <= 64);
    }
    assert_eq!(book.card(MAC).choose(&candidates), Some(("b".into(), Why::Learnt)));
}

#[test]
fn what_is_used_is_kept_longest() {
    let mut recent = Recent::new(8);
    for n in 0..1000 {
        recent.put(n, n);
        assert_eq!(recent.get(&0), Some(&mut 0), "after {n}");
        assert!(recent.len() <= 8);
    }
    assert!(recent.peek(&500).is_none() && recent.peek(&999).is_some());
}

#[derive(Debug, Clone)]
enum Act {
    Asks,
    Offered,
    Fetched(usize),
    Started,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![Just(Act::Asks), Just(Act::Offered), (0..4usize).prop_map(Act::Fetched), Just(Act::Started)]
}

proptest! {
    /// Whatever is told in whatever order, there is something to offer, the memory stays small, and a file that was not
    /// fetched is never put down as stalled.
    #[test]
    fn any_conversation(acts in prop::collection::vec(any_act(), 0..200)) {
        let candidates = names(&["a", "b", "c", "d"]);
        let mut card = Card::default();
        let mut fetched = Vec::new();
        for act in acts {
            match act {
                Act::Asks => { card.asks(&candidates); }
                Act::Offered => card.offered(card.choose(&candidates).unwrap().0),
                Act::Fetched(i) => {
                    card.fetched(&candidates[i]);
                    fetched.push(candidates[i].clone());
                }
                Act::Started => { card.started(); }
            }
            let (loader, _) = card.choose(&candidates).unwrap();
            prop_assert!(candidates.contains(&loader));
            prop_assert!(card.stalled.len() < candidates.len());
            prop_assert!(card.stalled.iter().all(|s| fetched.contains(s)));
        }
    }

    /// A card on which one file works finds it, whatever it showed before, and stays with it.
    #[test]
    fn the_one_that_works_is_found(
        before in prop::collection::vec(any_act(), 0..40),
        works in 0..4usize,
    ) {
        let candidates = names(&["a", "b", "c", "d"]);
        let mut card = Card::default();
        for act in before {
            match act {
                Act::Asks => { card.asks(&candidates); }
                Act::Offered => card.offered(card.choose(&candidates).unwrap().0),
                Act::Fetched(i) => card.fetched(&candidates[i]),
                Act::Started => { card.started(); }
            }
        }
        let starts = |name: &str| *name == *candidates[works];
        // One round to its end, one more strike for what was learnt wrongly, and a whole round.
        let found = (0..2 * candidates.len() + 1).any(|_| starts(&boot(&mut card, &candidates, starts).0));
        prop_assert!(found);
        for _ in 0..5 {
            prop_assert_eq!(&*boot(&mut card, &candidates, starts).0, &*candidates[works]);
        }
    }
}
