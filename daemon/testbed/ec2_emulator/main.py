"""The EC2 emulator as a program.

usage: python -P -m bentpipe.daemon.testbed.ec2_emulator.main [--port 0] [--speed 60] [--manual] [--limits] …
           [--pending 16.5] [--machine-port 8372] [--machine-command ARGV...]

It prints one line of JSON with its address once it serves, and ends on SIGTERM, SIGINT, or when its standard input
ends (so it never outlives the test that started it). `--machine-command` takes all the rest of the line.
"""

import argparse
import dataclasses
import json
import os
import signal
import threading

from bentpipe.daemon.testbed.ec2_emulator.clock import ManualClock, ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.instance import Timings
from bentpipe.daemon.testbed.ec2_emulator.server import MACHINE_PORT, Emulator


def main() -> None:
    """Run the emulator until a signal or the end of standard input."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="emulated seconds a second")
    parser.add_argument("--manual", action="store_true", help="time stands still except for /control/advance")
    parser.add_argument("--limits", action="store_true", help="enforce AWS's token buckets")
    for field in dataclasses.fields(Timings):
        flag = f"--{field.name.removesuffix('_s').replace('_', '-')}"
        parser.add_argument(flag, type=float, default=field.default, dest=field.name, metavar="SECONDS")
    parser.add_argument("--machine-port", type=int, default=MACHINE_PORT)
    parser.add_argument("--machine-command", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    timings = Timings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Timings)})
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Emulator(
        ManualClock() if args.manual else ScaledClock(args.speed),
        timings,
        limited=args.limits,
        host=args.host,
        port=args.port,
        machine_command=args.machine_command,
        machine_port=args.machine_port,
    ) as emulator:
        print(json.dumps({"url": emulator.url}), flush=True)
        threading.Thread(target=wait_input_end, args=(ended,), daemon=True).start()
        ended.wait()


def wait_input_end(ended: threading.Event) -> None:
    """Set `ended` once standard input has ended."""
    while os.read(0, 4096):  # not sys.stdin: its lock would be held at exit
        pass
    ended.set()


if __name__ == "__main__":
    main()
