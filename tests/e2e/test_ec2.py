"""A whole daemon whose cloud is the EC2 emulator, with a real gRPC satellite in each running instance."""

import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import trio

from beds.machines.emulator_calls import free_port
from beds.peers.clients import CallError, GrpcioClient
from bentpipe.config.load import load_config
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

TOKEN = "bp_test"
DEADLINE_S = 30.0
SPEED = 100.0
"""A start then takes 0.2 s, a hibernation 0.3 s."""
SATELLITE = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}", "--host", "{host}")


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    with Emulator(ScaledClock(SPEED), machine_command=SATELLITE, machine_port=free_port()) as emulator:
        yield emulator


@contextlib.asynccontextmanager
async def daemon_of(emulator: Emulator, folder: Path, port: int) -> AsyncIterator[Daemon]:
    path = folder / "bentpipe.toml"
    path.write_text(f"""
[[listener]]
address = "127.0.0.1:0"
[[token]]
name = "test"
hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
grants = ["acme/*"]
[ec2]
region = "eu-central-1"
endpoint = "{emulator.url}"
fleet = "test"
poll = "50ms"
sweep = "200ms"
[[satellite]]
org = "acme"
name = "one"
provider = "ec2"
sleep_after = "300ms"
min_awake = 0
retry_after = "100ms"
[satellite.ec2]
port = {port}
""")
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve, load_config(path))
        yield daemon
        daemon.drain.set()


async def call(daemon: Daemon) -> bytes:
    """One call on a connection of its own. Raises CallError."""
    metadata = (("satellite_name", "one"), ("satellite_org", "acme"), ("satellite_token", TOKEN))

    def run() -> bytes:
        client = GrpcioClient(daemon.addresses[0][1], None, metadata)
        try:
            return client.unary("Echo", b"hello")
        finally:
            client.close()

    return await trio.to_thread.run_sync(run)


async def wait_instance(emulator: Emulator, state: str, reason: str) -> None:
    with trio.fail_after(DEADLINE_S):
        while [(each["state"], each["reason"]) for each in emulator.control.describe()] != [(state, reason)]:
            await trio.sleep(0.02)


async def test_a_satellite_in_the_cloud(emulator: Emulator, tmp_path: Path) -> None:
    control = emulator.control
    instance_id = control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": "acme/one"})
    machines = emulator.cloud.machines
    assert machines is not None
    async with daemon_of(emulator, tmp_path, machines.port) as daemon:
        assert await call(daemon) == b"hello"
        assert control.starts(instance_id=instance_id) == 1
        pid = machines.pid(instance_id)
        await wait_instance(emulator, "stopped", "Client.UserInitiatedHibernate")
        assert await call(daemon) == b"hello"
        assert control.starts(instance_id=instance_id) == 2
        assert machines.pid(instance_id) == pid  # it was frozen, and has thawed
        await wait_instance(emulator, "stopped", "Client.UserInitiatedHibernate")
        control.fail(action="StartInstances", code="InsufficientInstanceCapacity", status=500, times=None)
        with pytest.raises(CallError) as error:
            await call(daemon)
        assert error.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert "InsufficientInstanceCapacity" in error.value.details
        calls = daemon.provider.call_counts
        assert calls["StartInstances", "ok"] == 2
        assert calls["StartInstances", "InsufficientInstanceCapacity"] >= 1
        assert control.starts(instance_id=instance_id) == 2
