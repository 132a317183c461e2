"""A daemon of which only the recorder is left: changes states as fast as it can until it is killed.

Prints the number of changes that the ledger has confirmed.
"""

import itertools
import sys
from pathlib import Path

import trio

from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition

KEYS = [SatelliteKey("acme", name) for name in "abc"]
STATES = [SatelliteState.SLEEP, SatelliteState.STARTING, SatelliteState.OPERATIONAL, SatelliteState.STOPPING]


async def main(path: Path) -> None:
    recorder = Recorder(SqliteLedger(path), KEYS)
    confirmed = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run_recorder)
        for number in itertools.count(1):
            for key in KEYS:
                state, after = STATES[number % 4], STATES[(number + 1) % 4]
                recorder.record_nowait(Transition(key, state, after, 0.0, str(number)))
            while recorder.statistics().recorded == confirmed:
                await trio.lowlevel.checkpoint()
            confirmed = recorder.statistics().recorded
            print(confirmed, flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
