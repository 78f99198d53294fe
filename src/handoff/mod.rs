//! What is handed to others once a host is delivered.

pub mod passport;
