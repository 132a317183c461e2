"""Whether the chains of an SQLite ledger keep law 1 of the contract: no overlaps and no holes."""

import sqlite3

from bentpipe.daemon.store.schema import reading

MAX_BREAKS = 20
"""How many are told. One is enough to know that something else has written into the file."""
BREAKS = f"""
SELECT org, name, ended_us, from_us FROM (
    SELECT satellite, from_us,
        lag(to_us) OVER chain AS ended_us, lag(id) OVER chain AS before
    FROM interval WINDOW chain AS (PARTITION BY satellite ORDER BY id)
) JOIN satellite ON satellite.id = satellite
WHERE before IS NOT NULL AND ended_us IS NOT from_us
LIMIT {MAX_BREAKS}
"""


def find_breaks(connection: sqlite3.Connection) -> list[str]:
    """Say which chains do not go on where they ended; times in microseconds since the epoch. Raises sqlite3.Error."""
    with reading(connection):
        rows = connection.execute(BREAKS).fetchall()
    return [
        f"{org}/{name}: an interval begins at {begun}, and the one before it "
        + ("has not ended" if ended is None else f"ended at {ended}")
        for org, name, ended, begun in rows
    ]
