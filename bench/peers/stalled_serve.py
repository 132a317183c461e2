"""`bentpipe serve` with a control plane that is stopped for 200 ms in every second: `stalled_serve.py CONFIG`.

The Trio thread sleeps, as in a forgotten blocking call. Spliced streams should not be slower for it.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import trio

from bentpipe.daemon.service import sd
from bentpipe.daemon.service.serve import run_serve

STALL_S, PERIOD_S = 0.2, 1.0


async def stall(well: Callable[[], bool] = bool) -> None:
    """Block the thread again and again. `well` is not used."""
    while True:
        time.sleep(STALL_S)  # noqa: ASYNC251 - it must block
        await trio.sleep(PERIOD_S - STALL_S)


if __name__ == "__main__":
    # This takes the watchdog's place in the daemon's nursery. No systemd waits for the watchdog here.
    sd.run_watchdog = stall
    sys.exit(run_serve(Path(sys.argv[1])))
