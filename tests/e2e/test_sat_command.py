"""`bentpipe sat` as a user runs it, against a daemon's TLS port with the control API."""

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from beds.hosts.command_bed import MACHINE_TYPES, CommandBed, command_bed
from beds.quoted import without_id
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.private_socket import Connected, Peer, peer_of
from bentpipe.daemon.service import control


def nobody(sock: Connected) -> Peer:
    """What the kernel would say of a caller of another user."""
    return Peer(peer_of(sock).pid, 65_534)


@pytest.fixture
async def bed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[CommandBed]:
    async with command_bed(tmp_path, nursery, types=MACHINE_TYPES) as made:
        yield made


async def test_a_table_for_people_and_json_for_programs(bed: CommandBed) -> None:
    listed = await bed.sat("ls")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^ *builder +sleep +linux/arm64 +process", listed.stdout, re.MULTILINE)
    found = json.loads((await bed.sat("ls", "--json")).stdout)
    assert [each["name"] for each in found] == ["broken", "builder"]
    assert {each["status"] for each in found} == {"sleep"}
    inspected = await bed.sat("inspect", "builder")
    assert "satellite  acme/builder\n" in inspected.stdout
    assert f"address    localhost:{bed.port}\n" in inspected.stdout
    assert json.loads((await bed.sat("inspect", "--json", "builder")).stdout)["id"] == "acme/builder"


async def test_wake_and_sleep_with_their_progress(bed: CommandBed) -> None:
    woken = await bed.sat("wake", "builder", token="user")
    assert woken.returncode == 0, woken.stderr
    assert re.sub(r"\([0-9.]+ s\)", "(…)", woken.stdout).splitlines() == [
        f"builder: {state} (…)" for state in ("sleep", "starting", "operational")
    ]
    assert bed.state() is SatelliteState.OPERATIONAL
    slept = await bed.sat("sleep", "--json", "builder")
    assert [json.loads(line)["state"] for line in slept.stdout.splitlines()] == ["operational", "stopping", "sleep"]
    assert bed.state() is SatelliteState.SLEEP


async def test_root_and_the_daemons_user_need_no_token_on_its_socket(bed: CommandBed) -> None:
    server = f"unix:{bed.socket}"
    listed = await bed.sat("ls", "--json", token="", EARTHLY_SERVER_ADDRESS=server)
    assert [each["name"] for each in json.loads(listed.stdout)] == ["broken", "builder"]
    assert (await bed.sat("wake", "builder", token="", EARTHLY_SERVER_ADDRESS=server)).returncode == 0
    assert (await bed.sat("sleep", "builder", token="", EARTHLY_SERVER_ADDRESS=server)).returncode == 0
    inspected = await bed.sat("inspect", "--json", "builder", token="", EARTHLY_SERVER_ADDRESS=server)
    assert "satellite_address" not in json.loads(inspected.stdout)
    assert bed.socket.stat().st_mode & 0o077 == 0


async def test_a_user_who_is_neither_is_turned_away(bed: CommandBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_of", nobody)
    listed = await bed.sat("ls", token="", EARTHLY_SERVER_ADDRESS=f"unix:{bed.socket}")
    assert (listed.returncode, listed.stdout) == (2, "")


async def test_the_socket_is_gone_with_its_daemon(bed: CommandBed) -> None:
    assert bed.socket.exists()
    bed.daemon.drain.set()
    with trio.fail_after(30):
        while bed.socket.exists():
            await trio.sleep(0.01)


async def test_refusals_say_why_and_have_an_exit_code(bed: CommandBed) -> None:
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


async def test_launch_and_removal(bed: CommandBed) -> None:
    launched = await bed.sat("launch", "new", "--size", "small", "--wake")
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.startswith("new: creating\n")
    assert launched.stdout.splitlines()[-1].startswith("new: operational")
    assert bed.state("new") is SatelliteState.OPERATIONAL
    again = await bed.sat("launch", "new", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"state": "creating"})
    for arguments, words in (
        (("launch", "other", "--size", "none"), "no machine type has size 'none'"),
        (("rm", "builder"), "configuration"),
        (("rm", "nothing"), "no such satellite"),
    ):
        refused = await bed.sat(*arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert words in refused.stderr
    for method in ("rm", "update", "cut", "launch"):
        refused = await bed.sat(method, "new", *(("--size", "small") if method == "update" else ()), token="user")
        assert refused.returncode == 2
        assert "manage" in refused.stderr, method
    updated = await bed.sat("update", "new", "--size", "large")
    assert (updated.returncode, updated.stdout) == (0, "new: updated\n"), updated.stderr
    refused = await bed.sat("update", "new", "--version", "v2")
    assert (refused.returncode, "version" in refused.stderr) == (2, True)
    removed = await bed.sat("rm", "new")
    assert (removed.returncode, removed.stdout) == (0, "new: removed\n"), removed.stderr


async def test_an_update_needs_something_to_change(bed: CommandBed) -> None:
    nothing = await bed.sat("update", "builder")
    assert nothing.returncode == 2
    assert "--size" in nothing.stderr
    refused = await bed.sat("update", "builder", "--version", "v2")
    assert refused.returncode == 2
    assert "configuration" in refused.stderr


async def test_cut_ends_the_connections_of_one_satellite(bed: CommandBed) -> None:
    with bed.channel() as echo:
        assert await trio.to_thread.run_sync(echo, b"hello") == b"hello"
        assert bed.daemon.handoff.live == 1
        assert (await bed.sat("cut", "broken")).stdout == "broken: 0 connections cut\n"
        assert bed.daemon.handoff.live == 1
        cut = await bed.sat("cut", "builder", "--json")
        assert (cut.returncode, json.loads(cut.stdout)) == (0, {"cut": 1})
        with trio.fail_after(30):
            await bed.daemon.handoff.wait_none()
    assert bed.state() is SatelliteState.OPERATIONAL
    refused = await bed.sat("cut", "nothing")
    assert (refused.returncode, without_id(refused.stderr.rstrip("\n"))) == (2, "no such satellite, or not yours")
