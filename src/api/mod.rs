//! The JSON face.

pub mod view;
