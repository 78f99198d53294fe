-- Leases are in files of their own now, beside the database: no release has had them here.
DROP TABLE lease;
