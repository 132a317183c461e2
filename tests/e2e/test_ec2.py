"""A whole daemon whose cloud is the EC2 emulator, with a real gRPC satellite in each running instance."""

from pathlib import Path

import grpc
import pytest
import trio

from beds.hosts.one_satellite import call, daemon_of
from beds.peers.clients import CallError
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

DEADLINE_S = 30.0
EC2 = """
[ec2]
region = "eu-central-1"
endpoint = "{url}"
fleet = "test"
poll = "50ms"
sweep = "200ms"
"""
SATELLITE = """
provider = "ec2"
sleep_after = "300ms"
min_awake = 0
retry_after = "100ms"
[satellite.ec2]
port = {port}
"""


async def wait_instance(emulator: Emulator, state: str, reason: str) -> None:
    with trio.fail_after(DEADLINE_S):
        while [(each["state"], each["reason"]) for each in emulator.control.describe()] != [(state, reason)]:
            await trio.sleep(0.02)


async def test_a_satellite_in_the_cloud(emulator: Emulator, tmp_path: Path) -> None:
    control = emulator.control
    instance_id = control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": "acme/one"})
    machines = emulator.cloud.machines
    assert machines is not None
    satellite = SATELLITE.format(port=machines.port)
    async with daemon_of(tmp_path, satellite, sections=EC2.format(url=emulator.url)) as daemon:
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
