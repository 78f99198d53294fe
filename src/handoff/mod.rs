//! What is handed to others once a host is delivered.

pub mod page;
pub mod passport;
