"""`bentpipe sat` as a user runs it, against a daemon's TLS port with the control API."""

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme

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
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(server.private_key_pem.bytes())
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tokens = "".join(
        f'[[token]]\nname = "{name}"\nhash = "sha256:{hashlib.sha256(token.encode()).hexdigest()}"\n'
        f'grants = ["acme/*"]\nscopes = ["{"manage" if name == "manager" else "use"}"]\n'
        for name, token in TOKENS.items()
    )
    satellites = "".join(
        f"""
[[satellite]]
org = "acme"
name = "{name}"
min_awake = 0
sleep_mode = "stop"
[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}", {arguments}]
"""
        for name, arguments in (("builder", '"--boot", "0.3"'), ("broken", '"--fail"'))
    )
    (tmp_path / "bentpipe.toml").write_text(f"""
[control]
path = "{tmp_path / "control.sock"}"
[[listener]]
address = "127.0.0.1:0"
api = true
[listener.tls]
certificate = "{tmp_path / "cert.pem"}"
key = "{tmp_path / "key.pem"}"
{tokens}
{satellites}
""")
    daemon = await nursery.start(serve, load_config(tmp_path / "bentpipe.toml"))
    yield Bed(daemon, tmp_path / "ca.pem")
    daemon.drain.set()
    with trio.fail_after(30):
        while nursery.child_tasks:
            await trio.sleep(0.01)


async def test_a_table_for_people_and_json_for_programs(bed: Bed) -> None:
    listed = await bed.sat("ls")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^ *builder +sleep +linux/amd64 +process", listed.stdout, re.MULTILINE)
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
