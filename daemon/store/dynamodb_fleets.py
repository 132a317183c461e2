"""Tells the operator if two fleets use one table. A table belongs to one fleet: its keys are names of satellites and tokens.

Two fleets in one table would share their tokens, and each would take the other's satellite of the same name for its own, and
would not put it to sleep while the other uses it. Keys with the fleet's name would not fit hosts of older versions.
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
            await trio.sleep(RETRY_S)  # the calls that need the table log the reason
            continue
        if others:
            names = " ".join(sorted(others))
            words = f"give each fleet a table of its own; if a fleet is gone, delete its item pk={FLEET}"
            fields = {"table": table.name, "fleet": fleet, "others": names, "advice": words}
            log.error("one table is used by several fleets", extra={"fields": fields})
        return


async def note_fleet(table: Table, fleet: str) -> frozenset[str]:
    """Enter the fleet. Returns the others that have been entered. Raises StoreError."""
    await table.update(FLEET, fleet, "SET known = :yes", {":yes": {"BOOL": True}})
    return frozenset(text(item, "sk") for item in await table.query(FLEET)) - {fleet}
