//! The JSON face.
