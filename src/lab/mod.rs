//! A virtual rack on one machine.
