"""`bentpipe sat` as a user runs it, against a daemon's TLS port with the control API."""

import json
import os
import re
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from beds.hosts.api_daemon import ApiToken, write_api_config
from beds.programs import BENTPIPE
from bentpipe.config.load import load_config
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service import control
from bentpipe.daemon.service.serve import Daemon, serve

TOKENS = {"manager": "bp_manager", "user": "bp_user"}


class Nobody:
    """What the kernel says of a caller: the credentials of another user."""

    size = control.CREDENTIALS.size

    def unpack(self, credentials: bytes) -> tuple[int, int, int]:
        process, _, group = struct.unpack("3i", credentials)
        return process, 65_534, group


class Bed:
    def __init__(self, daemon: Daemon, ca: Path) -> None:
        self.daemon, self.ca = daemon, ca
        self.socket = ca.with_name("api.sock")

    async def sat(self, *arguments: str, token: str = "manager", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "EARTHLY_SERVER_ADDRESS": f"https://localhost:{self.daemon.addresses[0][1]}",
            "EARTHLY_TOKEN": TOKENS.get(token, token),
            "EARTHLY_ORG": "acme",
            "SSL_CERT_FILE": str(self.ca),
            "COLUMNS": "100",
            **variables,
        }
        command = [str(BENTPIPE), "sat", *arguments]
        with trio.fail_after(60):
            return await trio.to_thread.run_sync(
                lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            )

    def state(self, name: str = "builder") -> SatelliteState:
        return self.daemon.fleet.get(SatelliteKey("acme", name)).state


@pytest.fixture
async def bed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Bed]:
    tokens = {name: ApiToken(TOKENS[name], scope=scope) for name, scope in (("manager", "manage"), ("user", "use"))}
    satellites = {"acme/builder": ("--boot", "0.3"), "acme/broken": ("--fail",)}
    control_section = f'[control]\npath = "{tmp_path / "control.sock"}"'
    config, ca = write_api_config(tmp_path, tokens, satellites, sections=control_section)
    daemon = await nursery.start(serve, load_config(config))
    yield Bed(daemon, ca)
    daemon.drain.set()
    with trio.fail_after(30):
        while nursery.child_tasks:
            await trio.sleep(0.01)


async def test_a_table_for_people_and_json_for_programs(bed: Bed) -> None:
    listed = await bed.sat("ls")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^ *builder +sleep +linux/arm64 +process", listed.stdout, re.MULTILINE)
    found = json.loads((await bed.sat("ls", "--json")).stdout)
    assert [each["name"] for each in found] == ["broken", "builder"]
    assert {each["status"] for each in found} == {"sleep"}
    inspected = await bed.sat("inspect", "builder")
    assert "satellite  acme/builder\n" in inspected.stdout
    assert f"address    localhost:{bed.daemon.addresses[0][1]}\n" in inspected.stdout
    assert json.loads((await bed.sat("inspect", "--json", "builder")).stdout)["id"] == "acme/builder"


async def test_wake_and_sleep_with_their_progress(bed: Bed) -> None:
    woken = await bed.sat("wake", "builder", token="user")
    assert woken.returncode == 0, woken.stderr
    assert re.sub(r"\([0-9.]+ s\)", "(…)", woken.stdout).splitlines() == [
        f"builder: {state} (…)" for state in ("sleep", "starting", "operational")
    ]
    assert bed.state() is SatelliteState.OPERATIONAL
    slept = await bed.sat("sleep", "--json", "builder")
    assert [json.loads(line)["state"] for line in slept.stdout.splitlines()] == ["operational", "stopping", "sleep"]
    assert bed.state() is SatelliteState.SLEEP


async def test_root_and_the_daemons_user_need_no_token_on_its_socket(bed: Bed) -> None:
    server = f"unix:{bed.socket}"
    listed = await bed.sat("ls", "--json", token="", EARTHLY_SERVER_ADDRESS=server)
    assert [each["name"] for each in json.loads(listed.stdout)] == ["broken", "builder"]
    assert (await bed.sat("wake", "builder", token="", EARTHLY_SERVER_ADDRESS=server)).returncode == 0
    assert (await bed.sat("sleep", "builder", token="", EARTHLY_SERVER_ADDRESS=server)).returncode == 0
    inspected = await bed.sat("inspect", "--json", "builder", token="", EARTHLY_SERVER_ADDRESS=server)
    assert "satellite_address" not in json.loads(inspected.stdout)
    assert bed.socket.stat().st_mode & 0o077 == 0


async def test_a_user_who_is_neither_is_turned_away(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CREDENTIALS", Nobody())
    listed = await bed.sat("ls", token="", EARTHLY_SERVER_ADDRESS=f"unix:{bed.socket}")
    assert (listed.returncode, listed.stdout) == (2, "")


async def test_the_socket_is_gone_with_its_daemon(bed: Bed) -> None:
    assert bed.socket.exists()
    bed.daemon.drain.set()
    with trio.fail_after(30):
        while bed.socket.exists():
            await trio.sleep(0.01)


async def test_refusals_say_why_and_have_an_exit_code(bed: Bed) -> None:
    for run, words in (
        (await bed.sat("sleep", "builder", token="user"), "scope"),
        (await bed.sat("inspect", "nothing"), "no such satellite"),
        (await bed.sat("ls", token="wrong"), "token"),
        (await bed.sat("wake", "broken"), "satellite"),
        (await bed.sat("ls", EARTHLY_SERVER_ADDRESS="edge:8372"), "https://HOST:PORT"),
        (await bed.sat("ls", EARTHLY_SERVER_ADDRESS="unix:/nowhere"), "no daemon answers"),
        (await bed.sat("ls", EARTHLY_SERVER_ADDRESS="https://localhost:1"), "refused"),
        (await bed.sat("ls", SSL_CERT_FILE=os.devnull), "certificate"),
    ):
        assert run.returncode == 2, run
        assert words.lower() in run.stderr.lower()
        assert run.stdout.startswith("broken: ") or not run.stdout
