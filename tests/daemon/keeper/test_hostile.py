"""The keeper and peers that send nonsense, flood it, do not read, or die: it lives, and so do its satellites."""

import contextlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.peers.keeper_peer import DEADLINE_S, HELLO, INSTALLED, Peer, kept, seated
from bentpipe.daemon.keeper.program import CONNECTIONS, listen
from bentpipe.daemon.keeper.protocol import (
    FIELD,
    HEADER,
    MESSAGE_BYTES,
    OLDEST_VERSION,
    VERSION,
    Field,
    Flag,
    Kind,
    Malformed,
    Message,
    Tag,
    checked_name,
    common_version,
    decode,
    encode,
)


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    path = tmp_path / "keeper.sock"
    with kept(path, INSTALLED) as process:
        yield process, path


def test_a_file_in_the_place_of_its_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "keeper.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        listen(path)
    assert path.read_text() == "precious"
    path.unlink()
    with listen(path), pytest.raises(OSError, match="another keeper listens there"):
        listen(path)
    with listen(path):
        pass


def test_the_seat_goes_to_the_next_only_when_it_is_free(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    _, path = keeper
    with seated(path) as first, Peer(path) as second:
        answer = second.ask(Kind.HELLO, HELLO)
        assert answer.kind == Kind.REFUSED
        assert f"process {os.getpid()} has the keeper's seat" in answer.text(Tag.WORDS)
        assert first.spawn("a", "/bin/sleep", "600").kind == Kind.DONE
        # The first one dies with a request unread: it is carried out before the next has the seat.
        first.sock.send(encode(Kind.END, 7, [(Tag.NAME, "a")]))
        first.sock.close()
        assert second.ask(Kind.HELLO, HELLO).kind == Kind.DONE
        assert second.wait_ended("a").value(Tag.STATUS) == 256 + signal.SIGTERM
        assert second.ask(Kind.RELEASE, [(Tag.NAME, "a")]).kind == Kind.DONE


def test_it_is_found_again_if_its_socket_was_removed(tmp_path: Path) -> None:
    """As by a program that clears /tmp. Else the next daemon would not find its satellites, and would start them again."""
    path = tmp_path / "private" / "keeper.sock"
    path.parent.mkdir(mode=0o700)
    with kept(path, INSTALLED):
        with seated(path) as first:
            assert first.spawn("a", "/bin/sleep", "600").kind == Kind.DONE
            shutil.rmtree(path.parent)
            until = time.monotonic() + DEADLINE_S
            while not path.exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            assert first.spawn("b", "/bin/sleep", "600").kind == Kind.DONE  # the link that was there is not touched
        with seated(path) as second:
            for name in ("a", "b"):
                assert Flag.EXITED not in Flag(second.ask(Kind.LOOK, [(Tag.NAME, name)]).value(Tag.FLAGS) or 0)


def test_output_and_status_wait_for_the_next_daemon(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    _, path = keeper
    with seated(path) as first:
        first.spawn("a", "/bin/sh", "-c", "sleep 0.2; seq 100000; echo last words; exit 7")
    with seated(path) as second:
        told = second.wait_ended("a")
        assert (told.value(Tag.STATUS), told.text(Tag.NOTE)) == (7, "note")
        tail = second.ask(Kind.READ, [(Tag.NAME, "a")]).get(Tag.OUTPUT)
        assert tail is not None
        assert tail.endswith(b"\nlast words\n")
        assert second.ask(Kind.NEXT).name() == "a"
        assert second.ask(Kind.NEXT, [(Tag.NAME, "a")]).fields == ()
        assert second.ask(Kind.RELEASE, [(Tag.NAME, "a")]).value(Tag.STATUS) == 7
        assert second.ask(Kind.NEXT).fields == ()


def test_a_request_before_hello_or_of_no_kind(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    _, path = keeper
    with Peer(path) as stranger:
        stranger.sock.send(encode(Kind.STOP, 1))
        assert (told := stranger.receive()) is not None
        assert "HELLO comes first" in told.text(Tag.WORDS)
        assert stranger.receive() is None
    with seated(path) as peer:
        peer.sock.send(HEADER.pack(4711, 0, 9))
        assert (told := peer.receive()) is not None
        assert (told.kind, told.number) == (Kind.REFUSED, 9)


@pytest.mark.parametrize(("oldest", "newest"), [(VERSION + 1, VERSION + 9), (0, 0)])
def test_versions_that_do_not_meet(keeper: tuple[subprocess.Popen[bytes], Path], oldest: int, newest: int) -> None:
    with Peer(keeper[1]) as peer:
        answer = peer.ask(Kind.HELLO, [(Tag.OLDEST, oldest), (Tag.NEWEST, newest)])
        assert answer.kind == Kind.REFUSED
        assert "speaks versions" in answer.text(Tag.WORDS)


def test_a_newer_daemon_and_this_keeper_understand_each_other() -> None:
    assert common_version(OLDEST_VERSION, VERSION + 5) == VERSION
    assert common_version(VERSION, VERSION) == VERSION
    assert common_version(VERSION + 1, VERSION + 5) is None


NAMES = ["", ".", "..", ".x", "a/b", "../x", "a\0b", "x" * 256, "ä", "@keeper", "a b", "a\n"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_would_leave_the_folder(name: str) -> None:
    with pytest.raises(Malformed):
        checked_name(name.encode())


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(Tag.ARGUMENT, "relative")],
        [(Tag.ARGUMENT, "/bin/true"), (Tag.ENVIRONMENT, "no equals sign")],
        [(Tag.ARGUMENT, "/bin/true"), (Tag.ENVIRONMENT, "=x")],
        [(Tag.ARGUMENT, "/bin/true\0"), (Tag.ENVIRONMENT, "a=b")],
        [(Tag.ARGUMENT, "/bin/true"), (Tag.FOLDER, "/\0")],
        [(Tag.ARGUMENT, "/bin/true"), (Tag.NOTE, "x" * 5000)],
        [(Tag.ARGUMENT, "/bin/true"), (Tag.GRACE_MS, "short")],
    ],
)
def test_spawns_without_a_valid_command(keeper: tuple[subprocess.Popen[bytes], Path], fields: list[Field]) -> None:
    """Each ends its own connection; what runs goes on, and nothing is left."""
    _, path = keeper
    with seated(path) as peer:
        pid = peer.spawn("lives", "/bin/sleep", "600").value(Tag.PID)
        with contextlib.suppress(OSError):
            peer.sock.send(encode(Kind.SPAWN, 99, [(Tag.NAME, "bad"), *fields]))
            while peer.receive() is not None:
                pass
    with seated(path) as peer:
        told = peer.ask(Kind.NEXT)
        assert (told.name(), told.value(Tag.PID)) == ("lives", pid)
        assert peer.ask(Kind.NEXT, [(Tag.NAME, "lives")]).fields == ()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/no/such/program",), "be executed: No such file"),
        (("/etc/passwd",), "be executed: Permission denied"),
        (("/",), "be executed: Permission denied"),
    ],
)
def test_a_program_that_cannot_run(
    keeper: tuple[subprocess.Popen[bytes], Path], command: tuple[str, ...], words: str
) -> None:
    with seated(keeper[1]) as peer:
        for _ in range(2):  # the first leaves nothing in the way
            answer = peer.spawn("a", *command)
            assert answer.kind == Kind.REFUSED
            assert words in answer.text(Tag.WORDS)
        assert peer.ask(Kind.NEXT).fields == ()


def test_one_that_floods_and_does_not_read_grows_nothing(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, path = keeper
    with seated(path) as peer:
        peer.spawn("a", "/bin/sh", "-c", "yes; sleep 600")
        before = psutil.Process(process.pid).memory_info().rss
        peer.sock.setblocking(False)
        packet = encode(Kind.READ, 5, [(Tag.NAME, "a")])
        sent = 0
        until = time.monotonic() + 3
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                peer.sock.send(packet)
                sent += 1
        assert sent < 5000, "the keeper reads on although nobody reads its answers"
        grown = psutil.Process(process.pid).memory_info().rss - before
        assert grown < 8 << 20, f"{grown >> 20} MiB more"
    with seated(path) as peer:
        assert peer.ask(Kind.NEXT).name() == "a"


def test_more_connections_than_it_takes(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    _, path = keeper
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS + 1):
            stack.enter_context(Peer(path))  # silent: each loses its connection after a while
        with seated(path) as peer:
            assert peer.ask(Kind.NEXT).fields == ()


def test_descriptors_that_are_sent_are_not_kept(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, path = keeper
    with seated(path) as peer:
        before = psutil.Process(process.pid).num_fds()
        for number in range(1, 50):
            socket.send_fds(peer.sock, [encode(Kind.NEXT, number)], [0, 1, 2])
            assert (answer := peer.receive()) is not None
            assert answer.number == number
        assert psutil.Process(process.pid).num_fds() == before


def mutated(chance: random.Random) -> bytes:
    kind = chance.choice([*Kind, 0, 99, 65535])
    fields = b""
    for _ in range(chance.randrange(5)):
        data = chance.choice([b"", b"a", b"..", b"/", b"\xff" * 8, bytes(8), chance.randbytes(chance.randrange(60))])
        length = len(data) if chance.random() < 0.9 else chance.randrange(1 << 32)
        fields += FIELD.pack(chance.choice([*Tag, 0, 200]), length) + data
    packet = HEADER.pack(kind, chance.randrange(2), chance.randrange(3)) + fields
    return packet[: chance.randrange(1, len(packet) + 1)] if chance.random() < 0.2 else packet


def test_a_storm_of_nonsense_ends_no_satellite(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, path = keeper
    chance = random.Random(11)
    with seated(path) as peer:
        pid = peer.spawn("lives.on", "/bin/sleep", "600").value(Tag.PID)
    before = psutil.Process(process.pid).num_fds()
    for _ in range(150):
        with contextlib.suppress(OSError, AssertionError), Peer(path) as peer:
            if chance.random() < 0.7:
                peer.ask(Kind.HELLO, HELLO)
            for _ in range(chance.randrange(1, 20)):
                packet = mutated(chance)
                if packet[:2] != struct.pack("!H", Kind.STOP):  # a daemon may stop it
                    peer.sock.send(packet, socket.MSG_DONTWAIT)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with Peer(path) as peer:
            if peer.ask(Kind.HELLO, HELLO).kind == Kind.DONE:
                assert peer.ask(Kind.NEXT).value(Tag.PID) == pid
                break
        assert time.monotonic() < deadline
    assert psutil.Process(process.pid).num_fds() <= before + CONNECTIONS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_user_is_not_let_in(keeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    _, path = keeper
    path.chmod(0o777)
    path.parent.chmod(0o711)
    program = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(10);"
        "s.connect(sys.argv[1]); os.setuid(4711)"
    )
    connected_as_root = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert connected_as_root.returncode == 0
    script = (
        "import os, socket, sys; os.chdir(os.path.dirname(sys.argv[1])); os.setuid(4711);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(10); s.connect('keeper.sock');"
        "sys.exit(0 if s.recv(1000) == b'' else 1)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 0


FIELDS = st.lists(st.tuples(st.sampled_from(Tag), st.binary(max_size=100)), max_size=20)


@given(kind=st.sampled_from(Kind), number=st.integers(0, 2**32 - 1), fields=FIELDS)
def test_there_and_back(kind: Kind, number: int, fields: list[tuple[Tag, bytes]]) -> None:
    assert decode(encode(kind, number, fields)) == Message(kind, number, tuple(fields))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        message = decode(data)
        for tag in Tag:
            with contextlib.suppress(Malformed):
                message.value(tag)
            message.text(tag)


def test_the_longest_message() -> None:
    room = MESSAGE_BYTES - HEADER.size - FIELD.size
    assert len(encode(Kind.SPAWN, 1, [(Tag.ARGUMENT, b"x" * room)])) == MESSAGE_BYTES
    with pytest.raises(ValueError, match="131072 are the most"):
        encode(Kind.SPAWN, 1, [(Tag.ARGUMENT, b"x" * (room + 1))])
