-- A ledger as version 1 left it, in mid-run: never changed, so that migrations are tried on what they will meet.
CREATE TABLE satellite (id INTEGER PRIMARY KEY, org TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (org, name)) STRICT;
CREATE TABLE interval (
    id INTEGER PRIMARY KEY,
    satellite INTEGER NOT NULL REFERENCES satellite (id),
    state TEXT NOT NULL,
    from_us INTEGER NOT NULL,
    from_boot_us INTEGER NOT NULL,
    from_boot_id TEXT NOT NULL,
    to_us INTEGER CHECK (to_us >= from_us),
    elapsed_us INTEGER CHECK (elapsed_us >= 0),
    cause TEXT NOT NULL,
    who TEXT NOT NULL,
    phases TEXT NOT NULL DEFAULT '{}',
    clients INTEGER NOT NULL DEFAULT 0,
    waited_s REAL NOT NULL DEFAULT 0,
    waited_longest_s REAL NOT NULL DEFAULT 0,
    CHECK ((to_us IS NULL) = (elapsed_us IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_open_interval ON interval (satellite) WHERE to_us IS NULL;
CREATE INDEX interval_end ON interval (to_us);
CREATE TABLE life (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    run TEXT NOT NULL,
    serial INTEGER NOT NULL,
    wall_us INTEGER NOT NULL,
    boot_us INTEGER NOT NULL,
    boot_id TEXT NOT NULL
) STRICT;
INSERT INTO satellite VALUES (1, 'acme', 'a');
INSERT INTO interval VALUES
    (1, 1, 'sleep', 1700000000000000, 5000000, 'boot-0', 1700000060000000, 60000000, 'idle', '', '{}', 0, 0.0, 0.0),
    (2, 1, 'starting', 1700000060000000, 65000000, 'boot-0', 1700000072000000, 12000000, 'a client came', 'ci',
     '{"start": 2.0, "boot": 9.0, "listen": 1.0}', 3, 30.0, 12.0),
    (3, 1, 'operational', 1700000072000000, 77000000, 'boot-0', NULL, NULL, 'ready', '', '{}', 0, 0.0, 0.0);
INSERT INTO life VALUES (1, 'run-1', 3, 1700000080000000, 85000000, 'boot-0');
PRAGMA application_id = 1650816112;
PRAGMA user_version = 1;
