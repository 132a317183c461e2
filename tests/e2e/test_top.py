"""`bentpipe top`, progress and completion as somebody at a terminal sees them."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from beds.hosts.command_bed import CommandBed, command_bed
from beds.programs import BENTPIPE
from bentpipe.daemon.model import SatelliteState

SECOND_SCREEN, FIRST_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
CURSOR_HIDDEN, CURSOR_SHOWN = b"\x1b[?25l", b"\x1b[?25h"


@pytest.fixture
async def bed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[CommandBed]:
    async with command_bed(tmp_path, nursery) as made:
        yield made


class Terminal:
    """A program at a terminal."""

    def __init__(self, bed: CommandBed, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = bed.environment(TERM="xterm-256color", LINES="40")
        self.program = subprocess.Popen(
            [BENTPIPE, *arguments],
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.seen = b""

    async def read_until(self, words: bytes) -> None:
        with trio.fail_after(60):
            while words not in self.seen:
                assert await self._read(), self.seen

    async def read_to_end(self) -> int:
        with trio.fail_after(60):
            while await self._read():
                pass
            return await trio.to_thread.run_sync(self.program.wait)

    async def _read(self) -> bool:
        await trio.lowlevel.wait_readable(self._ours)
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            data = os.read(self._ours, 65536)
            self.seen += data
            return bool(data)
        return False

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._ours)


@contextlib.contextmanager
def at_terminal(bed: CommandBed, *arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(bed, *arguments)
    try:
        yield terminal
    finally:
        terminal.close()


async def test_one_look_at_what_satellites_do(bed: CommandBed) -> None:
    with bed.channel() as echo:
        assert await trio.to_thread.run_sync(echo, b"x" * 100_000) == b"x" * 100_000
        done = await bed.run(["top", "--once"], "user")
        assert done.returncode == 0, done.stderr
        assert re.search(r"^ *builder +operational +\d+ s +0 +1 *$", done.stdout, re.MULTILINE), done.stdout
        assert re.search(r"^ *broken +sleep +\d+ s +0 +0 *$", done.stdout, re.MULTILINE), done.stdout
        [line] = (await bed.run(["top", "--once", "--json"], "user")).stdout.splitlines()
        shown = {each["name"]: each for each in json.loads(line)["satellites"]}
        assert (shown["builder"]["connections"], shown["broken"]["connections"]) == (1, 0)
        assert shown["builder"]["up_rate"] is None


async def test_rates_come_with_the_second_look(bed: CommandBed) -> None:
    with bed.channel() as echo:
        await trio.to_thread.run_sync(echo, b"1")
        command = [str(BENTPIPE), "top", "--json", "--interval", "1"]
        with subprocess.Popen(command, env=bed.environment(), stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            first = json.loads(await trio.to_thread.run_sync(program.stdout.readline))
            await trio.to_thread.run_sync(echo, b"x" * 200_000)
            seen = first
            with trio.fail_after(30):
                while not seen["satellites"][1]["down_rate"]:
                    seen = json.loads(await trio.to_thread.run_sync(program.stdout.readline))
            program.kill()
    builder = seen["satellites"][1]
    assert (builder["name"], builder["connections"]) == ("builder", 1)
    assert builder["up_rate"] > 10_000
    # What ended connections have moved still counts, so that no rate is ever negative.
    with trio.fail_after(30):
        await bed.daemon.handoff.wait_none()
    moved = await bed.daemon.handoff.read_traffic()
    [total] = moved.values()
    assert (total.connections, total.up_bytes > 200_000) == (0, True)


@pytest.mark.parametrize("way_out", ["Ctrl-C", "SIGTERM"])
async def test_the_live_table_leaves_the_terminal_as_it_was(bed: CommandBed, way_out: str) -> None:
    with at_terminal(bed, "top", "--interval", "1") as terminal:
        await terminal.read_until(b"builder")
        assert SECOND_SCREEN in terminal.seen
        # A terminal turns Ctrl-C into the signal for its own session. This one is nobody's, since what is still unread of a
        # session's terminal is lost when the session's leader ends.
        terminal.program.send_signal(signal.SIGINT if way_out == "Ctrl-C" else signal.SIGTERM)
        assert await terminal.read_to_end() == (0 if way_out == "Ctrl-C" else 128 + signal.SIGTERM)
        assert terminal.seen.rindex(FIRST_SCREEN) > terminal.seen.rindex(SECOND_SCREEN)
        assert terminal.seen.rindex(CURSOR_SHOWN) > terminal.seen.rindex(CURSOR_HIDDEN)
        assert b"Traceback" not in terminal.seen


async def test_a_daemon_that_goes_away_is_told_and_the_table_stays(bed: CommandBed) -> None:
    with at_terminal(bed, "top", "--interval", "1") as terminal:
        await terminal.read_until(b"builder")
        bed.daemon.drain.set()
        await terminal.read_until(b"https://localhost:")
        with trio.fail_after(60):
            while b"refused" not in terminal.seen.lower() and b"shutting down" not in terminal.seen:
                await terminal.read_until(b"")
                await trio.sleep(0.05)
                assert await terminal._read()
        assert terminal.program.poll() is None


async def test_progress_at_a_terminal_while_a_satellite_wakes(bed: CommandBed) -> None:
    with at_terminal(bed, "sat", "wake", "builder") as terminal:
        assert await terminal.read_to_end() == 0
        plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]|\r", b"", terminal.seen)
        for state in (b"sleep", b"starting", b"operational"):
            assert re.search(rb"builder: %s \([0-9.]+ s\)" % state, plain), plain
        assert terminal.seen.rindex(CURSOR_SHOWN) > terminal.seen.rindex(CURSOR_HIDDEN)
    assert bed.state() is SatelliteState.OPERATIONAL


async def test_tops_first_refusal_is_an_exit_code(bed: CommandBed) -> None:
    done = await bed.run(["top"], "wrong")
    assert (done.returncode, done.stdout) == (2, "")
    assert "token" in done.stderr


async def completed(bed: CommandBed, words: str, **variables: str) -> list[str]:
    """What bash would be offered for the last word of a command line."""
    number = str(len(words.split(" ")) - 1)
    asked = {"_BENTPIPE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    done = await bed.run([], "user", **asked, **variables)
    assert done.returncode == 0, done.stderr
    return [line.partition(",")[2] for line in done.stdout.split()]


async def test_names_are_completed_by_asking_the_daemon(bed: CommandBed) -> None:
    assert await completed(bed, "bentpipe sat wake b") == ["broken", "builder"]
    assert await completed(bed, "bentpipe sat cut bu") == ["builder"]
    assert await completed(bed, "bentpipe sat wake --org other b", EARTHLY_ORG="") == []
    assert await completed(bed, f"bentpipe sat sleep --server unix:{bed.socket} bu", EARTHLY_SERVER_ADDRESS="") == [
        "builder"
    ]
    assert "launch" in await completed(bed, "bentpipe sat l")
    for broken in ("https://localhost:1", "nonsense"):
        assert await completed(bed, "bentpipe sat wake b", EARTHLY_SERVER_ADDRESS=broken) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_each_shell_has_a_script(bed: CommandBed, shell: str) -> None:
    done = await bed.run(["completion", shell])
    assert done.returncode == 0, done.stderr
    assert "_BENTPIPE_COMPLETE" in done.stdout
    if shell == "bash":
        checked = subprocess.run(["bash", "-n"], input=done.stdout, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
    assert (await bed.run(["completion", "csh"])).returncode == 2
