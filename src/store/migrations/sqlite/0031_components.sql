-- Parts by serial number: one row for each stay in a machine. seen: the last inventory that had it there; until: when it was found
-- to be gone.
CREATE TABLE component (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    kind    TEXT   NOT NULL,
    serial  TEXT   NOT NULL,
    model   TEXT   NOT NULL,
    place   TEXT   NOT NULL,
    machine TEXT   NOT NULL,
    since   BIGINT NOT NULL,
    seen    BIGINT NOT NULL,
    until   BIGINT
);
CREATE INDEX component_serial ON component (serial);
CREATE INDEX component_machine ON component (machine, until);
