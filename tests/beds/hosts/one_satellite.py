"""A daemon in this process with one satellite, acme/one, and calls to it."""

import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import trio

from beds.hosts.form import serve_file, write_in_form
from beds.peers.clients import TIMEOUT_S, GrpcioClient
from beds.ports import free_port
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

TOKEN = "bp_test"
KEY = SatelliteKey("acme", "one")
METADATA = (("satellite_name", KEY.name), ("satellite_org", KEY.org), ("satellite_token", TOKEN))
COMMAND = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}")
EC2_SPEED = 100.0
"""A start then takes 0.2 s, a hibernation 0.3 s."""
SECTIONS = f"""
[[listener]]
address = "127.0.0.1:0"
[[token]]
name = "test"
hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
grants = ["{KEY.org}/*"]
"""


@contextlib.contextmanager
def emulated_ec2(command: Sequence[str] = (*COMMAND, "--host", "{host}")) -> Iterator[Emulator]:
    """EC2 whose machines are satellites on this host."""
    with Emulator(ScaledClock(EC2_SPEED), machine_command=command, machine_port=free_port()) as emulator:
        yield emulator


@contextlib.asynccontextmanager
async def daemon_of(folder: Path, satellite: str, *, sections: str = "") -> AsyncIterator[Daemon]:
    """Serve until the end of the block. `satellite`: the keys of its section; `sections`: what stands before it."""
    path = folder / "bentpipe.toml"
    text = f'{SECTIONS}{sections}\n[[satellite]]\norg = "{KEY.org}"\nname = "{KEY.name}"\n{satellite}'
    write_in_form(path, text, folder)
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve_file, path)
        yield daemon
        daemon.drain.set()


async def call(daemon: Daemon, timeout_s: float = TIMEOUT_S) -> bytes:
    """One call on a connection of its own. Raises CallError."""

    def run() -> bytes:
        with contextlib.closing(GrpcioClient(daemon.addresses[0][1], None, METADATA)) as client:
            return client.unary("Echo", b"hello", timeout_s=timeout_s)

    return await trio.to_thread.run_sync(run)
