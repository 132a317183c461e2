"""Links over real SOCK_SEQPACKET sockets: order, peers that die, hang, flood and lie."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from bentpipe.daemon.planes.bounds import DATA_BYTES, MESSAGE_BYTES
from bentpipe.daemon.planes.codec import encode_record
from bentpipe.daemon.planes.link import Link, LinkEnd
from bentpipe.daemon.planes.records import ByeCode, BytesRecord, PingRecord, PongRecord, Record, YieldRecord
from bentpipe.daemon.planes.sockets import (
    PeerDenied,
    check_peer,
    connect_private,
    listen_for_planes,
    make_private_folder,
    plane_socket_path,
    plane_sockets,
)
from bentpipe.daemon.planes.table import MAGIC, MESSAGE_HEADER, Plane
from bentpipe.daemon.private_socket import Peer, peer_of

RECORDS = 3_000


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def data(number: int) -> BytesRecord:
    return BytesRecord(1, number, False, bytes([number % 256]) * (number * 37 % 4_000))


async def run_to_end(link: Link, got: list[Record]) -> LinkEnd:
    with trio.fail_after(20):
        end = await link.run_link(got.append)
    link.close()
    return end


async def test_records_come_in_order_both_ways_and_the_end_is_told() -> None:
    ours, theirs = pair()
    control, plane = Link(ours, Plane.DATA), Link(theirs, Plane.CONTROL)
    up: list[Record] = []
    down: list[Record] = []
    ends: dict[str, LinkEnd] = {}

    def answer(record: Record) -> None:
        down.append(record)
        assert isinstance(record, PingRecord)
        plane.send_nowait(data(record.number))
        if record.number == RECORDS - 1:
            plane.send_nowait(YieldRecord(0, "last"))

    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            with trio.fail_after(20):
                ends["plane"] = await plane.run_link(answer)
            plane.close()

        nursery.start_soon(serve)
        with trio.fail_after(20), trio.CancelScope() as done:

            def receive(record: Record) -> None:
                up.append(record)
                if isinstance(record, YieldRecord):
                    done.cancel()

            for number in range(RECORDS):
                control.send_nowait(PingRecord(0, number))
            await control.run_link(receive)
        control.say_bye(ByeCode.LEAVING, "done")
        control.close()
    assert down == [PingRecord(0, number) for number in range(RECORDS)]
    assert up == [*(data(number) for number in range(RECORDS)), YieldRecord(0, "last")]
    assert ends == {"plane": LinkEnd.PEER_LEFT}
    assert plane.bye is not None
    assert plane.bye.words == "done"


async def test_the_last_words_of_a_peer_that_died_with_unread_messages_are_read() -> None:
    """ECONNRESET comes before them: the peer had not read what we sent."""
    ours, theirs = pair()
    link = Link(ours, Plane.DATA)
    message = MESSAGE_HEADER.pack(MAGIC, 0)
    ours.send(message)  # never read
    for number in range(20):
        theirs.send(message + encode_record(data(number)))
    theirs.close()
    got: list[Record] = []
    assert await run_to_end(link, got) is LinkEnd.PEER_GONE
    assert got == [data(number) for number in range(20)]


async def test_what_was_queued_for_a_dead_peer_does_not_hide_what_it_said() -> None:
    """The writer meets EPIPE first; the reader still has messages."""
    ours, theirs = pair()
    link = Link(ours, Plane.DATA)
    for number in range(20):
        theirs.send(MESSAGE_HEADER.pack(MAGIC, 0) + encode_record(data(number)))
        link.send_nowait(PingRecord(0, number))
    theirs.close()
    got: list[Record] = []
    assert await run_to_end(link, got) is LinkEnd.PEER_GONE
    assert len(got) == 20


async def test_a_peer_that_breaks_the_protocol_is_told_how() -> None:
    ours, theirs = pair()
    theirs.send(MESSAGE_HEADER.pack(MAGIC, 0) + encode_record(PongRecord(0, 1)) + b"\x00")
    link = Link(ours, Plane.DATA)
    assert await run_to_end(link, []) is LinkEnd.PROTOCOL
    assert "incomplete record header" in link.broken
    assert b"incomplete record header" in theirs.recv(MESSAGE_BYTES)
    theirs.close()


async def test_a_message_that_is_too_long_is_refused_and_not_cut() -> None:
    ours, theirs = pair()
    theirs.send(MESSAGE_HEADER.pack(MAGIC, 0) + bytes(MESSAGE_BYTES))
    link = Link(ours, Plane.DATA)
    assert await run_to_end(link, []) is LinkEnd.PROTOCOL
    assert "more than" in link.broken
    theirs.close()


async def test_a_peer_that_does_not_read_ends_the_link_and_costs_a_bounded_queue() -> None:
    ours, theirs = pair()
    link = Link(ours, Plane.CONTROL)

    async def flood() -> None:
        number = 0
        while True:
            for _ in range(64):
                link.send_nowait(BytesRecord(1, number, False, bytes(DATA_BYTES)))
                number += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        assert await run_to_end(link, []) is LinkEnd.SLOW
        nursery.cancel_scope.cancel()
    theirs.close()


async def test_a_peer_that_floods_leaves_others_their_turns() -> None:
    ours, theirs = pair()
    link = Link(ours, Plane.DATA)
    turns, got = 0, 0
    theirs.setblocking(False)
    message = MESSAGE_HEADER.pack(MAGIC, 0) + 500 * encode_record(PingRecord(0, 1))

    def receive(record: Record) -> None:
        nonlocal got
        got += 1

    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            for _ in range(400):
                await trio.lowlevel.wait_writable(theirs)
                theirs.send(message)
            trio.lowlevel.notify_closing(theirs)
            theirs.close()

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(flood)
        nursery.start_soon(count)
        with trio.fail_after(30):
            await link.run_link(receive)
        nursery.cancel_scope.cancel()
    link.close()
    assert got == 400 * 500
    assert turns > 20


CHILD = """
import socket, sys, time
from bentpipe.daemon.planes.codec import encode_record
from bentpipe.daemon.planes.records import PongRecord
from bentpipe.daemon.planes.sockets import connect_private
from bentpipe.daemon.planes.table import MAGIC, MESSAGE_HEADER
from pathlib import Path
sock = connect_private(Path(sys.argv[1]))
sock.setblocking(True)
number = 0
while True:
    sock.send(MESSAGE_HEADER.pack(MAGIC, 0) + encode_record(PongRecord(0, number)))
    number += 1
"""


@pytest.mark.parametrize("after", [1, 40, 400])
async def test_a_killed_process_loses_no_message_that_it_had_sent(tmp_path: Path, after: int) -> None:
    path = plane_socket_path(tmp_path, "one")
    listening = listen_for_planes(path)
    child = subprocess.Popen([sys.executable, "-P", "-c", CHILD, str(path)])
    try:
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(listening)
            accepted, _ = listening.accept()
            check_peer(accepted)
            assert peer_of(accepted) == (child.pid, os.geteuid())
            link = Link(accepted, Plane.DATA)
            got: list[Record] = []

            def receive(record: Record) -> None:
                got.append(record)
                link.send_nowait(PingRecord(0, len(got)))  # which the child never reads
                if len(got) == after:
                    child.send_signal(signal.SIGKILL)

            assert await link.run_link(receive) is LinkEnd.PEER_GONE
            link.close()
    finally:
        child.kill()
        child.wait()
        trio.lowlevel.notify_closing(listening)
        listening.close()
    assert got == [PongRecord(0, number) for number in range(len(got))]
    assert len(got) >= after
    with pytest.raises(ConnectionRefusedError):  # the path is left, and nobody listens
        connect_private(path)


def test_the_folder_and_the_socket_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "missing" / "planes"
    make_private_folder(folder)
    make_private_folder(folder)
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    path = plane_socket_path(folder, "one")
    assert list(plane_sockets(folder)) == []
    with listen_for_planes(path):
        assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
        assert list(plane_sockets(folder)) == [path]
        with pytest.raises(OSError, match="cannot listen"):
            listen_for_planes(path)
    assert list(plane_sockets(tmp_path / "none")) == []
    folder.chmod(0o755)
    with pytest.raises(OSError, match="0700"):
        make_private_folder(folder)
    with pytest.raises(OSError, match="107 bytes"):
        plane_socket_path(folder, "x" * 200)


def test_another_users_process_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    ours, theirs = pair()
    monkeypatch.setattr("bentpipe.daemon.planes.sockets.peer_of", lambda sock: Peer(77, 1_000))
    with ours, theirs, pytest.raises(PeerDenied, match="process 77 of user 1000"):
        check_peer(ours)
