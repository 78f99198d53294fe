//! What a machine goes through: pure decisions.
