-- Which boot file worked on which network card: one row a MAC address. A hint; what is lost is learnt again.
CREATE TABLE boot_loader (
    mac    TEXT   PRIMARY KEY,
    loader TEXT   NOT NULL,
    at     BIGINT NOT NULL
);
