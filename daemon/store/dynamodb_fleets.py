"""Which fleets use a table. A table is one fleet's: rows are known by satellites' names, and tokens by their own.

Two fleets in one table would take each other's satellites of the same name for theirs (neither would put to sleep what the
other uses), and each other's tokens. The keys cannot say so without a break with hosts of older versions, so it is told.
"""

import logging

import trio

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.store.dynamodb_table import Table, text

log = logging.getLogger("bentpipe.store")

FLEET = "FLEET"
RETRY_S = 30.0
"""While the table cannot be reached."""


async def run_fleet_check(table: Table, fleet: str) -> None:
    """Enter the fleet in the table, and tell the operator if it is not the only one. Returns when that is done."""
    while True:
        try:
            others = await note_fleet(table, fleet)
        except StoreError:
            await trio.sleep(RETRY_S)  # those who need the table say why
            continue
        if others:
            names = " ".join(sorted(others))
            words = f"give each fleet a table of its own; of a fleet that is no more, delete the item pk={FLEET}"
            fields = {"table": table.name, "fleet": fleet, "others": names, "advice": words}
            log.error("one table is used by several fleets", extra={"fields": fields})
        return


async def note_fleet(table: Table, fleet: str) -> frozenset[str]:
    """Enter the fleet. Returns the others that have been entered. Raises StoreError."""
    await table.update(FLEET, fleet, "SET known = :yes", {":yes": {"BOOL": True}})
    return frozenset(text(item, "sk") for item in await table.query(FLEET)) - {fleet}
