//! Packets as clients send them, byte by byte, and what comes back.
