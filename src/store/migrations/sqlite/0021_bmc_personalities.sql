-- What was learnt of each kind of BMC: one row a vendor, product and firmware. A hint; what is lost is learnt again.
CREATE TABLE bmc_personality (
    vendor   TEXT   NOT NULL,
    product  TEXT   NOT NULL,
    firmware TEXT   NOT NULL,
    at       BIGINT NOT NULL,
    body     TEXT   NOT NULL,
    PRIMARY KEY (vendor, product, firmware)
);
