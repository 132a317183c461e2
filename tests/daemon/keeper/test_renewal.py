"""The keeper becomes the installed program, and its satellites notice nothing."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import bentpipe.daemon.keeper
from beds.peers.keeper_peer import DEADLINE_S, HELLO, INSTALLED, Peer, kept, seated
from bentpipe.daemon import private_socket
from bentpipe.daemon.keeper.build import build_of_files
from bentpipe.daemon.keeper.protocol import Field, Flag, Kind, Message, Tag
from bentpipe.daemon.keeper.renewal import STATE
from bentpipe.daemon.keeper.state import (
    KeeperState,
    KeptRun,
    UnknownState,
    read_state,
    write_state,
)

OLDER = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("bentpipe.daemon.keeper", run_name="__main__")
"""
TICKER = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done"


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_renewed(pid: int) -> bool:
    """Whether the process runs as the next program of a keeper, and serves again."""
    return f"\0{STATE}=".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def connect_again(path: Path) -> Peer:
    """A daemon that takes the seat once the keeper serves."""
    peer = Peer(path)
    assert peer.ask(Kind.HELLO, HELLO).kind == Kind.DONE
    return peer


def renewed(peer: Peer, path: Path, pid: int) -> Peer:
    """Have a keeper renewed, as a daemon does."""
    assert peer.ask(Kind.RENEW).kind == Kind.DONE
    assert peer.receive() is None, "the connection ends"
    peer.sock.close()
    wait(lambda: is_renewed(pid))
    return connect_again(path)


def all_of(peer: Peer) -> dict[str, Message]:
    found: dict[str, Message] = {}
    while True:
        told = peer.ask(Kind.NEXT, [(Tag.NAME, list(found)[-1])] if found else [])
        if not told.fields:
            return found
        found[told.name()] = told


def freeze(peer: Peer, name: str) -> None:
    assert peer.ask(Kind.FREEZE, [(Tag.NAME, name)]).kind == Kind.DONE
    wait(lambda: Flag.FROZEN in Flag(peer.ask(Kind.LOOK, [(Tag.NAME, name)]).value(Tag.FLAGS) or 0))


def test_running_frozen_and_ended_satellites_go_on(tmp_path: Path) -> None:
    path = tmp_path / "keeper.sock"
    with kept(path, INSTALLED) as keeper:
        peer = seated(path)
        for name, command in {"ticks": TICKER, "frozen": TICKER, "ended": "echo last words; exit 7"}.items():
            assert peer.spawn(name, "/bin/sh", "-c", command).kind == Kind.DONE
        peer.wait_ended("ended")
        freeze(peer, "frozen")
        before = all_of(peer)
        for _ in range(3):
            peer = renewed(peer, path, keeper.pid)
            after = all_of(peer)
            assert after.keys() == before.keys()
            for name, told in before.items():
                for tag in (Tag.BIRTH, Tag.PID, Tag.NOTE, Tag.GRACE_MS, Tag.FLAGS, Tag.STATUS, Tag.CGROUP):
                    assert after[name].get(tag) == told.get(tag), (name, tag)
            assert b"last words" in (peer.ask(Kind.READ, [(Tag.NAME, "ended")]).get(Tag.OUTPUT) or b"")
            # The output goes on without a gap.
            printed = peer.ask(Kind.READ, [(Tag.NAME, "ticks"), (Tag.OFFSET, 0)]).get(Tag.OUTPUT) or b""
            lines = printed.split(b"\n")[:-1]
            assert [int(line) for line in lines] == list(range(1, len(lines) + 1))
            waiting: list[Field] = [(Tag.NAME, "ticks"), (Tag.OFFSET, len(printed)), (Tag.WAIT, 1)]
            assert peer.ask(Kind.READ, waiting).get(Tag.OUTPUT)
        assert peer.ask(Kind.RELEASE, [(Tag.NAME, "ended")]).value(Tag.STATUS) == 7
        for name in ("ticks", "frozen"):
            assert peer.ask(Kind.END, [(Tag.NAME, name)]).kind == Kind.DONE
            peer.wait_ended(name)
            assert peer.ask(Kind.RELEASE, [(Tag.NAME, name)]).value(Tag.STATUS) == 256 + signal.SIGTERM
        assert peer.spawn("ticks", "/bin/sh", "-c", "exit 3").kind == Kind.DONE, "it starts new ones"
        assert peer.wait_ended("ticks").value(Tag.STATUS) == 3
        assert open_descriptors(keeper.pid) < 20
        peer.sock.close()


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_satellite_gets_no_descriptor_of_the_state(tmp_path: Path) -> None:
    path = tmp_path / "keeper.sock"
    with kept(path, INSTALLED) as keeper:
        peer = seated(path)
        assert peer.spawn("before", "/bin/sleep", "60").kind == Kind.DONE
        peer = renewed(peer, path, keeper.pid)
        told = peer.spawn("after", "/bin/sleep", "60")
        assert sorted(os.listdir(f"/proc/{told.value(Tag.PID)}/fd")) == ["0", "1", "2"]
        peer.sock.close()


def test_sighup_renews_and_sigterm_during_it_ends_in_good_order(tmp_path: Path) -> None:
    path = tmp_path / "keeper.sock"
    with kept(path, INSTALLED) as keeper:
        with seated(path) as peer:
            assert peer.spawn("a", "/bin/sleep", "60").kind == Kind.DONE
            keeper.send_signal(signal.SIGHUP)
            assert peer.receive() is None
        wait(lambda: is_renewed(keeper.pid))
        with seated(path) as peer:
            assert list(all_of(peer)) == ["a"]
            keeper.send_signal(signal.SIGHUP)  # `kept` sends SIGTERM now


def test_a_keeper_goes_on_if_the_installed_program_is_broken(tmp_path: Path) -> None:
    """The interpreter is found by its path, which is replaced after the start."""
    path = tmp_path / "keeper.sock"
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (tmp_path / "pyvenv.cfg").write_text(Path(sys.prefix, "pyvenv.cfg").read_text())
    (tmp_path / "lib").symlink_to(Path(sys.prefix, "lib"))
    with kept(path, (str(python), *INSTALLED[1:])) as keeper:
        peer = seated(path)
        pid = peer.spawn("a", "/bin/sleep", "60").value(Tag.PID)
        python.unlink()
        answer = peer.ask(Kind.RENEW)
        assert answer.kind == Kind.REFUSED
        assert "No such file" in answer.text(Tag.WORDS)
        python.write_text("#!/bin/sh\necho it is broken >&2; exit 5\n")
        python.chmod(0o755)
        assert "it is broken" in peer.ask(Kind.RENEW).text(Tag.WORDS)
        assert peer.ask(Kind.LOOK, [(Tag.NAME, "a")]).value(Tag.PID) == pid
        assert not is_renewed(keeper.pid)
        peer.sock.close()


def older_program(folder: Path, note: str) -> tuple[str, ...]:
    """A copy of the keeper's program, of another build. What it becomes is the installed one."""
    copy = folder / "older" / "bentpipe" / "daemon"
    shutil.copytree(Path(bentpipe.daemon.keeper.__file__).parent, copy / "keeper")
    for each in (Path(private_socket.__file__), Path(bentpipe.daemon.__file__ or "")):
        shutil.copy(each, copy)
    with (copy / "keeper" / "loop.py").open("a") as file:
        file.write(f"# {note}\n")
    return (sys.executable, "-I", "-c", OLDER, str(folder / "older"))


def test_an_older_keeper_becomes_the_installed_one(tmp_path: Path) -> None:
    path = tmp_path / "keeper.sock"
    with kept(path, older_program(tmp_path, "an older version")) as keeper:
        peer = Peer(path)
        hello = peer.ask(Kind.HELLO, HELLO)
        assert hello.text(Tag.BUILD) not in ("", build_of_files())
        pid = peer.spawn("a", "/bin/sleep", "60").value(Tag.PID)
        assert peer.ask(Kind.RENEW).kind == Kind.DONE
        assert peer.receive() is None
        peer.sock.close()
        wait(lambda: is_renewed(keeper.pid))
        peer = Peer(path)
        assert peer.ask(Kind.HELLO, HELLO).text(Tag.BUILD) == build_of_files()
        assert all_of(peer)["a"].value(Tag.PID) == pid
        peer.sock.close()


STATE_OF_ONE = KeeperState(
    *(5, "CGROUP", "/cgroup", Path("/cgroup"), 6, 7, ("trouble",)),
    (KeptRun("a", "b1", b"\0note", 100, 1000, Path("/home/a"), 77, 8, None, b"printed\xff", 99, 7, True, False),),
)


def test_a_state_is_read_as_it_was_written() -> None:
    fd = write_state(STATE_OF_ONE)
    try:
        assert read_state(fd) == STATE_OF_ONE
        assert sorted(STATE_OF_ONE.descriptors) == [5, 6, 7, 8]
    finally:
        os.close(fd)


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\x02{}", b"\xff" * 64, b"\0\0\0\x0b" + b'{"state":9}'])
def test_a_state_that_is_none_is_refused(damage: bytes) -> None:
    fd = os.memfd_create("damaged")
    os.write(fd, damage)
    try:
        with pytest.raises(UnknownState):
            read_state(fd)
    finally:
        os.close(fd)
