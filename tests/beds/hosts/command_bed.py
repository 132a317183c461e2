"""A daemon with the control API on a TLS port and on its socket, and the commands that ask it, as a user runs them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import grpc
import trio

from beds.hosts.api_daemon import ApiToken, write_api_config
from beds.hosts.form import serve_file
from beds.programs import BENTPIPE
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.satellite import SERVICE

TOKENS = {"manager": "bp_manager", "user": "bp_user"}
MACHINE_TYPES = "".join(
    f"""
[[machine_type]]
size = "{size}"
sleep_mode = "stop"
min_awake = 0
[machine_type.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]
"""
    for size in ("small", "large")
)
DEADLINE_S = 60.0


class CommandBed:
    """A daemon with the satellites acme/builder and acme/broken."""

    def __init__(self, daemon: Daemon, ca: Path) -> None:
        self.daemon, self.ca = daemon, ca
        self.socket = ca.with_name("api.sock")

    @property
    def port(self) -> int:
        return self.daemon.addresses[0][1]

    def environment(self, token: str = "manager", **variables: str) -> dict[str, str]:
        return {
            **os.environ,
            "EARTHLY_SERVER_ADDRESS": f"https://localhost:{self.port}",
            "EARTHLY_TOKEN": TOKENS.get(token, token),
            "EARTHLY_ORG": "acme",
            "SSL_CERT_FILE": str(self.ca),
            "COLUMNS": "100",
            **variables,
        }

    async def run(
        self, arguments: Sequence[str], token: str = "manager", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = self.environment(token, **variables)
        command = [str(BENTPIPE), *arguments]
        with trio.fail_after(DEADLINE_S):
            return await trio.to_thread.run_sync(
                lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            )

    async def sat(self, *arguments: str, token: str = "manager", **variables: str) -> subprocess.CompletedProcess[str]:
        return await self.run(("sat", *arguments), token, **variables)

    def state(self, name: str = "builder") -> SatelliteState:
        return self.daemon.fleet.get(SatelliteKey("acme", name)).state

    @contextlib.contextmanager
    def channel(self, satellite: str = "builder", token: str = "user") -> Iterator[grpc.UnaryUnaryMultiCallable]:
        """An echo at a satellite, on a connection that stays open inside the block."""
        credentials = grpc.ssl_channel_credentials(self.ca.read_bytes())
        options = [("grpc.use_local_subchannel_pool", 1)]
        metadata = (("satellite_name", satellite), ("satellite_org", "acme"), ("satellite_token", TOKENS[token]))
        with grpc.secure_channel(f"localhost:{self.port}", credentials, options) as channel:
            call = channel.unary_unary(f"/{SERVICE}/Echo")
            yield lambda message: call(message, metadata=metadata, timeout=DEADLINE_S)


@contextlib.asynccontextmanager
async def command_bed(folder: Path, nursery: trio.Nursery, *, types: str = "") -> AsyncIterator[CommandBed]:
    """Run the daemon inside the block."""
    tokens = {name: ApiToken(TOKENS[name], scope=scope) for name, scope in (("manager", "manage"), ("user", "use"))}
    satellites = {"acme/builder": ("--boot", "0.3"), "acme/broken": ("--fail",)}
    sections = f'[control]\npath = "{folder / "control.sock"}"\n[store]\npath = "{folder / "ledger.sqlite"}"\n'
    config, ca = write_api_config(folder, tokens, satellites, sections=sections + types)
    daemon = await nursery.start(serve_file, config)
    yield CommandBed(daemon, ca)
    daemon.drain.set()
    with trio.fail_after(DEADLINE_S):
        while nursery.child_tasks:
            await trio.sleep(0.01)
