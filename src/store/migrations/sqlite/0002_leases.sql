-- DHCP bindings: one row an address.
CREATE TABLE lease (
    address TEXT   PRIMARY KEY,
    mac     TEXT   NOT NULL,
    client  BLOB   NOT NULL,
    uuid    TEXT,
    state   TEXT   NOT NULL,
    expires BIGINT NOT NULL
);
CREATE INDEX lease_mac ON lease (mac);
