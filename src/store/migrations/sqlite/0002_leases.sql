-- DHCP bindings: one row an address, kept after its lease ends so that a machine that comes back finds its address again.
-- client: option 61 as sent, empty where there was none. state: leased, released, declined.
CREATE TABLE lease (
    address TEXT   PRIMARY KEY,
    mac     TEXT   NOT NULL,
    client  BLOB   NOT NULL,
    uuid    TEXT,
    state   TEXT   NOT NULL,
    expires BIGINT NOT NULL
);
