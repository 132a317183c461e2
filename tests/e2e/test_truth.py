"""What others do to a machine, by a daemon with the default settings: it is seen at once, and the next client is served.

The emulated cloud's clock runs 100 times as fast; the daemon's does not, and its sweep is 60 s.
"""

import contextlib
import functools
import http.server
import json
import os
import signal
import sys
import threading
from pathlib import Path

import grpc
import pytest
import trio

from beds.hosts import one_satellite
from beds.hosts.one_satellite import COMMAND, KEY
from beds.hosts.one_satellite import call as call_once
from beds.peers.clients import CallError
from beds.ports import free_port
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.ec2_emulator import machine_init
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

TAGS = {"bentpipe:fleet": "default", "bentpipe:satellite": "acme/one"}
SOON_S = 20.0
"""From a client's coming to its answer: a third of the sweep, and far more than a look and a start take."""
DEADLINE_S = 30.0
call = functools.partial(call_once, timeout_s=SOON_S)


def daemon_of(
    emulator: Emulator, folder: Path, ec2: str = "", *, aws: str = 'region = "eu-central-1"'
) -> contextlib.AbstractAsyncContextManager[Daemon]:
    machines = emulator.cloud.machines
    assert machines is not None
    satellite = f'provider = "ec2"\n[satellite.ec2]\nport = {machines.port}\n{ec2}\n'
    return one_satellite.daemon_of(folder, satellite, sections=f'[ec2]\n{aws}\nendpoint = "{emulator.url}"')


async def crowd_is_served(daemon: Daemon, clients: int = 5, *, goes_down: bool = False) -> None:
    """Clients come at once. If the machine `goes_down` just now, it cuts calls that it has begun; they are made again."""
    with trio.fail_after(SOON_S):
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(served, daemon, goes_down)


async def served(daemon: Daemon, goes_down: bool) -> None:
    while True:
        try:
            assert await call(daemon) == b"hello"
        except CallError as exc:
            if not goes_down or exc.code != grpc.StatusCode.UNAVAILABLE.value[0] or exc.connection_id:
                raise  # the id is that of a refusal, and nobody is refused here
        else:
            return


async def wait_state(control: Control, instance_id: str, state: str) -> None:
    with trio.fail_after(DEADLINE_S):
        while control.state(instance_id=instance_id) != state:
            await trio.sleep(0.01)


async def wait_dead(emulator: Emulator, instance_id: str) -> None:
    """Until its machine has ended: a call that runs at that moment is cut, and rightly."""
    assert emulator.cloud.machines is not None
    with trio.fail_after(DEADLINE_S):
        while emulator.cloud.machines.pid(instance_id) is not None:
            await trio.sleep(0.002)


async def wait_seen_asleep(daemon: Daemon) -> None:
    """Until the daemon has looked. A machine that the emulator has frozen still accepts connections, unlike a real one."""
    [satellite] = daemon.fleet.satellites
    with trio.fail_after(DEADLINE_S):
        while satellite.state is SatelliteState.OPERATIONAL:
            await trio.sleep(0.01)


def starts(control: Control) -> list[str]:
    return [call.outcome for call in control.calls(action="StartInstances")]


@pytest.mark.parametrize("how", ["stop", "hibernate", "shutdown", "power failure"])
@pytest.mark.parametrize("when", ["long ago", "just now"])
async def test_stopped_by_others(how: str, when: str, emulator: Emulator, tmp_path: Path) -> None:
    control = emulator.control
    instance_id = control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path) as daemon:
        assert await call(daemon) == b"hello"
        control.others_stop(
            instance_id=instance_id,
            hibernate=how == "hibernate",
            inside=how == "shutdown",
            force=how == "power failure",
        )
        if when == "long ago":
            await wait_state(control, instance_id, "stopped")
            if how == "hibernate":
                await wait_seen_asleep(daemon)
        elif how == "power failure":
            await wait_dead(emulator, instance_id)
        await crowd_is_served(daemon, goes_down=when == "just now")
        # What is on its way down may have answered all of them before it was down.
        least = 2 if when == "long ago" else 1
        assert least <= control.starts(instance_id=instance_id) <= 2
        assert len(starts(control)) == control.starts(instance_id=instance_id), "one start a sleep, however many wait"


@pytest.mark.parametrize("successor", ["running", "stopped"])
async def test_replaced_by_another_with_its_tags(successor: str, emulator: Emulator, tmp_path: Path) -> None:
    control = emulator.control
    first = control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path) as daemon:
        assert await call(daemon) == b"hello"
        control.others_terminate(instance_id=first)
        await wait_state(control, first, "terminated")
        second = control.add_instance(tags=TAGS, running=successor == "running")
        await crowd_is_served(daemon)
        assert control.starts(instance_id=second) == (0 if successor == "running" else 1)
        assert len(starts(control)) == (1 if successor == "running" else 2)


async def test_replaced_while_it_slept(emulator: Emulator, tmp_path: Path) -> None:
    """Nobody has looked since: the start of the old one finds that out."""
    control = emulator.control
    first = control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path):
        pass
    async with daemon_of(emulator, tmp_path) as daemon:
        assert daemon.fleet.get(KEY).state is SatelliteState.SLEEP
        control.others_terminate(instance_id=first)
        await wait_state(control, first, "terminated")
        second = control.add_instance(tags=TAGS)
        await crowd_is_served(daemon)
        assert control.starts(instance_id=second) == 1


async def test_terminated_and_replaced_while_somebody_waits(emulator: Emulator, tmp_path: Path) -> None:
    """An Auto Scaling group takes a while.

    A client that comes in between is told, and the successor is found before the sweep.
    """
    control = emulator.control
    first = control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path) as daemon:
        assert await call(daemon) == b"hello"
        control.others_terminate(instance_id=first)
        await wait_state(control, first, "terminated")
        with pytest.raises(CallError, match="machine is gone"):
            await call(daemon)
        control.add_instance(tags=TAGS, running=True)
        await trio.sleep(2.0)
        await crowd_is_served(daemon, 1)


async def test_terminated_by_others_it_is_launched_anew_for_its_client(emulator: Emulator, tmp_path: Path) -> None:
    control = emulator.control
    control.add_template(name="builder")
    async with daemon_of(emulator, tmp_path, 'launch_template = "builder"') as daemon:
        assert await call(daemon) == b"hello"
        (first,) = (str(each["instance_id"]) for each in control.describe())
        control.others_terminate(instance_id=first)
        await wait_state(control, first, "terminated")
        await crowd_is_served(daemon)
        assert [each.outcome for each in control.calls(action="RunInstances")] == ["ok", "ok"]


async def test_stopped_and_started_by_others_it_has_another_address(emulator: Emulator, tmp_path: Path) -> None:
    control = emulator.control
    instance_id = control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path) as daemon:
        assert await call(daemon) == b"hello"
        control.script(instance_id=instance_id, new_address=True)
        control.others_stop(instance_id=instance_id)
        await wait_state(control, instance_id, "stopped")
        control.others_start(instance_id=instance_id)
        await wait_state(control, instance_id, "running")
        await crowd_is_served(daemon)
        assert starts(control) == ["ok"]


# -- the last reason ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"), [("InternalError", 500), ("RequestLimitExceeded", 503), ("ServiceUnavailable", 503)]
)
async def test_a_reason_is_heard_before_the_deadline(
    code: str, status: int, emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control = emulator.control
    control.add_instance(tags=TAGS)
    words = "account 123456789012 is in trouble"
    async with daemon_of(emulator, tmp_path) as daemon:
        control.fail(action="StartInstances", code=code, message=words, status=status, times=None)
        with pytest.raises(CallError) as caught:
            await call(daemon, timeout_s=5.0)
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert code in caught.value.details
        assert "123456789012" not in caught.value.details
        control.clear_faults()
        assert await call(daemon, timeout_s=60.0) == b"hello", "the wake went on"
    said = [record for record in caplog.records if record.message == "cannot start a machine"]
    assert len(said) == 1, "once a series"
    assert words in str(vars(said[0])["fields"])
    assert any(record.message == "can start a machine again" for record in caplog.records)


@pytest.mark.parametrize("code", ["SomethingNobodyKnows", "ExpiredToken", "AuthFailure", "UnauthorizedOperation"])
async def test_a_refusal_is_told_at_once_and_passes(code: str, emulator: Emulator, tmp_path: Path) -> None:
    control = emulator.control
    control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path) as daemon:
        control.fail(action="StartInstances", code=code, status=403, times=1)
        began = trio.current_time()
        with pytest.raises(CallError, match=code) as caught:
            await call(daemon)
        assert trio.current_time() - began < 5.0
        assert "the next attempt is possible in" in caught.value.details
        await trio.sleep(16.0)
        assert await call(daemon) == b"hello"


# -- credentials that come late ----------------------------------------------------------------------------------------

MENDED_S = 45.0
"""Looks of a daemon that knows nothing yet are 30 s apart at the most."""


@pytest.fixture
def no_credentials(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a credentials file would be found."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path / "credentials"


async def told_at_once(daemon: Daemon, words: str) -> None:
    began = trio.current_time()
    with pytest.raises(CallError, match=words) as caught:
        await call(daemon, timeout_s=60.0)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert trio.current_time() - began < 10.0


async def served_soon(daemon: Daemon) -> None:
    with trio.fail_after(MENDED_S):
        while True:
            with contextlib.suppress(CallError):
                assert await call(daemon, timeout_s=MENDED_S) == b"hello"
                return
            await trio.sleep(0.5)


async def test_credentials_that_are_written_later(
    no_credentials: Path, emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path) as daemon:
        await told_at_once(daemon, "NoCredentialsError")
        no_credentials.write_text("[default]\naws_access_key_id = AKIDONE\naws_secret_access_key = AKIDONE\n")
        await served_soon(daemon)
    messages = [record.message for record in caplog.records]
    assert "cannot look at machines" in messages
    assert "can look at machines again" in messages


class Imds(http.server.BaseHTTPRequestHandler):
    """The instance metadata, as botocore asks them (IMDSv2)."""

    ready = threading.Event()

    def do_PUT(self) -> None:
        self._answer("a-token")

    def do_GET(self) -> None:
        credentials = {
            "Code": "Success",
            "AccessKeyId": "AKIDONE",
            "SecretAccessKey": "AKIDONE",
            "Token": "session",
            "Expiration": "2099-01-01T00:00:00Z",
        }
        self._answer("a-role" if self.path.endswith("/security-credentials/") else json.dumps(credentials))

    def _answer(self, body: str) -> None:
        self.send_response(200 if self.ready.is_set() else 503)
        self.end_headers()
        self.wfile.write(body.encode() if self.ready.is_set() else b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


async def test_instance_metadata_that_answer_late(
    no_credentials: Path, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.control.add_instance(tags=TAGS)
    Imds.ready.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Imds) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            async with daemon_of(emulator, tmp_path) as daemon:
                await told_at_once(daemon, "NoCredentialsError")
                Imds.ready.set()
                await served_soon(daemon)
        finally:
            server.shutdown()
            thread.join()


async def test_without_a_region_it_is_told_at_once(no_credentials: Path, emulator: Emulator, tmp_path: Path) -> None:
    no_credentials.write_text("[default]\naws_access_key_id = AKIDONE\naws_secret_access_key = AKIDONE\n")
    emulator.control.add_instance(tags=TAGS)
    async with daemon_of(emulator, tmp_path, aws="") as daemon:
        await told_at_once(daemon, "NoRegionError")
        (tmp_path / "config").write_text("[default]\nregion = eu-central-1\n")
        await served_soon(daemon)


REBOOT_S = 5.0
"""Longer than a machine that does not answer is dialled again before it counts as one that starts."""


def satellites_of(port: int) -> list[int]:
    """Processes of the satellite itself that listen on `port`, not of the shell and the machine around it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                is_python = arguments[0] == sys.executable.encode() and machine_init.__file__.encode() not in arguments
                if is_python and b"%d" % port in arguments:
                    found.append(int(entry.name))
    return found


async def test_rebooted_by_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """EC2 says `running` throughout: a client that comes meanwhile waits until it answers again, and nothing is started."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    port = free_port()
    command = ("sh", "-c", f'while :; do "$@"; sleep {REBOOT_S}; done', "sh", *COMMAND, "--host", "{host}")
    with Emulator(ScaledClock(100.0), machine_command=command, machine_port=port) as emulator:
        control = emulator.control
        instance_id = control.add_instance(tags=TAGS)
        async with daemon_of(emulator, tmp_path) as daemon:
            assert await call(daemon) == b"hello"
            [pid] = satellites_of(port)
            before = starts(control)
            os.kill(pid, signal.SIGKILL)
            await crowd_is_served(daemon)
            assert satellites_of(port) != [pid]
            assert daemon.fleet.get(KEY).state is SatelliteState.OPERATIONAL
        assert control.state(instance_id=instance_id) == "running"
        assert starts(control) == before == ["ok"]
