-- Portable on purpose (SQLite today, PostgreSQL for several nodes): BIGINT, TEXT and BLOB only, times in milliseconds
-- since 1970, identifiers as TEXT.

-- What was accepted, in order; replaying a machine's rows gives its state.
CREATE TABLE event (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    machine  TEXT   NOT NULL,
    sequence BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    kind     TEXT   NOT NULL,
    body     TEXT   NOT NULL,
    UNIQUE (machine, sequence)
);

-- The state after the last event.
CREATE TABLE machine (
    id       TEXT   PRIMARY KEY,
    name     TEXT   NOT NULL UNIQUE,
    serial   TEXT   UNIQUE,
    state    TEXT   NOT NULL,
    sequence BIGINT NOT NULL,
    wake_at  BIGINT,
    format   BIGINT NOT NULL,
    body     TEXT   NOT NULL
);
CREATE INDEX machine_wake ON machine (wake_at) WHERE wake_at IS NOT NULL;


-- What is to be done outside, written in the transaction that decided it; removed by the one that takes its result.
CREATE TABLE outbox (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    machine TEXT   NOT NULL,
    at      BIGINT NOT NULL,
    body    TEXT   NOT NULL
);

-- Sealed with the site key (src/store/seal.rs): BMC passwords.
CREATE TABLE secret (
    name   TEXT PRIMARY KEY,
    sealed BLOB NOT NULL
);
