-- What others are still to be told: one row a message and receiver, written in the transaction that changed the machine's state,
-- removed when the receiver has it. given_up: 1 where it was tried for a day.
CREATE TABLE post (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    receiver TEXT   NOT NULL,
    at       BIGINT NOT NULL,
    due      BIGINT NOT NULL,
    tries    BIGINT NOT NULL,
    given_up BIGINT NOT NULL,
    error    TEXT   NOT NULL,
    body     TEXT   NOT NULL
);
CREATE INDEX post_due ON post (receiver, given_up, due);
