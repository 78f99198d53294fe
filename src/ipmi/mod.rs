//! The words of IPMI 2.0: messages in and out as types, without a transport, and the in-band device.
//!
//! A command is a type that implements [`Ask`]: it makes a [`Request`] and reads the data of its [`Response`]. How the
//! request travels is somebody else's affair: [`device`] sends it through `/dev/ipmi0`, `crate::bmc` through a network
//! session. Section and table numbers are those of the IPMI specification, second generation, v2.0 revision 1.1.

pub mod app;
pub mod chassis;
pub mod device;
pub mod event;
pub mod fru;
pub mod lan;
pub mod meaning;
pub mod message;
pub mod records;
pub mod payload;
pub mod sdr;
pub mod sel;
pub mod sensor;
pub mod text;
pub mod user;

pub use message::{Ask, Completion, Fault, Fields, Request, Response};
