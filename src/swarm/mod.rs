//! How the bytes of an image reach a machine: sources of chunks.
