"""`bentpipe serve` whose control plane stands still for 200 ms in every second: `stalled_serve.py CONFIG`.

The Trio thread sleeps, as in a blocking call that somebody forgot; a spliced stream should not notice.
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
    """Block the thread again and again, whether all is `well` or not."""
    while True:
        time.sleep(STALL_S)  # noqa: ASYNC251 - what is meant
        await trio.sleep(PERIOD_S - STALL_S)


if __name__ == "__main__":
    # The watchdog's place in the daemon's nursery: it has nothing to do here, where no systemd waits for it.
    sd.run_watchdog = stall
    sys.exit(run_serve(Path(sys.argv[1])))
