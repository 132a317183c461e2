"""Writes tokens and generations to a registry as fast as it can until it is killed; prints what was confirmed."""

import itertools
import sys
from pathlib import Path

import trio

from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.daemon.registry.sqlite import SqliteRegistry

KEY = SatelliteKey("acme", "a")


async def main(path: Path, run: int) -> None:
    registry = SqliteRegistry(path)
    for number in itertools.count(1):
        name = f"{run}-{number}"
        await registry.add_token(StoredToken(name, f"sha256:{run:032x}{number:032x}", ("acme/*",), number))
        known = await registry.satellites()
        after = known[0].generation if known else 0
        newest = await registry.begin_generation(KEY, after=after, owner=name, at_us=number)
        await registry.set_machine(KEY, newest.generation, MachineId(f"i-{newest.generation}"))
        print(name, newest.generation, flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
