//! Events, state, outbox, leases; SQLite embedded.
