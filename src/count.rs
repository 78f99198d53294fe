//! Things that are counted by name, for logs and metrics: what never comes is there with a zero, since a metric that comes
//! and goes cannot be watched.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A closed set of names. [`named!`] makes one.
pub trait Named: Copy + 'static {
    const ALL: &'static [Self];

    /// As metrics and logs write it.
    fn name(self) -> &'static str;

    /// Its place in [`Named::ALL`].
    fn place(self) -> usize;
}

/// An enum of which each variant has a name: `named! { /// Why. Why { /// It rained. Rain = "rain", } }`.
macro_rules! named {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$doc])* $variant,)* }

        impl $type {
            /// As metrics and logs write it.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }
        }

        impl $crate::count::Named for $type {
            const ALL: &'static [Self] = &[$($type::$variant,)*];

            fn name(self) -> &'static str {
                self.name()
            }

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use named;

/// One number for each of a closed set; counting neither locks nor allocates.
#[derive(Debug)]
pub struct Tally<T> {
    numbers: Box<[AtomicU64]>,
    of: std::marker::PhantomData<fn(T)>,
}

impl<T: Named> Default for Tally<T> {
    fn default() -> Self {
        Self { numbers: T::ALL.iter().map(|_| AtomicU64::new(0)).collect(), of: std::marker::PhantomData }
    }
}

impl<T: Named> Tally<T> {
    pub fn number(&self, of: T) -> Option<&AtomicU64> {
        self.numbers.get(of.place())
    }

    /// One more; how many there are now.
    pub fn add(&self, of: T) -> u64 {
        self.number(of).map_or(0, |n| n.fetch_add(1, Relaxed) + 1)
    }

    pub fn get(&self, of: T) -> u64 {
        self.number(of).map_or(0, |n| n.load(Relaxed))
    }

    pub fn snapshot(&self) -> impl Iterator<Item = (&'static str, u64)> {
        T::ALL.iter().map(|of| (of.name(), self.get(*of)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    named! {
        Weather {
            Rain = "rain",
            Snow = "snow",
        }
    }

    #[test]
    fn each_is_counted_under_its_name_and_nothing_is_left_out() {
        let tally = Tally::default();
        assert_eq!((tally.add(Weather::Snow), tally.add(Weather::Snow)), (1, 2));
        assert_eq!(tally.snapshot().collect::<Vec<_>>(), [("rain", 0), ("snow", 2)]);
    }
}
