//! Inbox, turn, outbox, timers.
