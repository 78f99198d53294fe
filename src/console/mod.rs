//! The face for people.
