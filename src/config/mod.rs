//! Typed file to resolved settings.
