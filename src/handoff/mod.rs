//! What is handed to others once a host is delivered: the signed [`passport`] and its [`page`], word to other systems
//! ([`announce`] says what, [`receiver`] to whom and how), lists for other tools ([`inventory`]), and the certificates by which hosts
//! and those who work with them know one another ([`authority`]).

pub mod announce;
pub mod authority;
pub mod inventory;
pub mod page;
pub mod passport;
pub mod receiver;
