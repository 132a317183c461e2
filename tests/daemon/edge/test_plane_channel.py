"""A connection of the data plane's, as a session uses it: windows, words that are never cut in two, ends."""

import socket
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
import trustme

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.transport import RECEIVE_BYTES, OverLimit, PeerLeft, TransportError
from bentpipe.daemon.edge.plane import PlaneEvents, RemotePlane
from bentpipe.daemon.edge.plane_channel import HELD_WINDOW, KEPT_BEHIND, PlaneChannel
from bentpipe.daemon.model import Address
from bentpipe.daemon.planes.bounds import DATA_BYTES, DOWN_WINDOW, UP_WINDOW
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.link import Link
from bentpipe.daemon.planes.records import (
    BytesRecord,
    GoneRecord,
    Hangup,
    Record,
    SayFlag,
    SayRecord,
    ShutRecord,
    Shutting,
    WindowRecord,
)
from bentpipe.daemon.planes.table import Plane
from bentpipe.native.tls import TlsClientContext, TlsError

ID = 7


class FakePlane:
    """Keeps what a channel sends; closes what it is asked to close."""

    number = 1

    def __init__(self) -> None:
        self.sent: list[Record] = []
        self.forgotten: list[int] = []
        self.closes = True

    def send_nowait(self, record: Record) -> None:
        self.sent.append(record)

    def forget(self, channel: PlaneChannel) -> None:
        self.forgotten.append(channel.id)

    @property
    def said(self) -> list[SayRecord]:
        return [record for record in self.sent if isinstance(record, SayRecord)]


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane()


def came(channel: PlaneChannel, offset: int, data: bytes, *, end: bool = False) -> None:
    channel.came(BytesRecord(ID, offset, end, data))


async def test_a_satellite_is_not_dialled_if_the_plane_cannot_check_its_certificate(tmp_path: Path) -> None:
    """Without the name of its authority the data plane would speak plaintext with it."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other, mine:
        link = Link(mine, Plane.DATA)
        plane = RemotePlane(link, 1, cast(PlaneEvents, None))
        queued = link.queued_bytes
        with pytest.raises(TlsError, match="does not have the certificates"):
            await plane.attempt(Address("127.0.0.1", 9), SatelliteTls(TlsClientContext(ca=ca)), 1.0)
        assert link.queued_bytes == queued


async def test_what_has_come_is_read_in_order_to_the_end(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID, b"first")
    assert await channel.peek(2) == b"fi"
    assert await channel.receive_some() == b"first"
    assert channel.receive_nowait() is None
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert await channel.receive_some() == b"second"

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        came(channel, 5, b"second")
    came(channel, 11, b"last", end=True)
    assert channel.receive_nowait() == b"last"
    assert channel.receive_nowait() == b""
    assert await channel.peek(9) == b""
    assert channel.taken == 15


async def test_bytes_that_do_not_continue_or_exceed_the_window_break_the_protocol(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID, b"first")
    for offset, data in ((4, b"x"), (6, b"x"), (5, bytes(UP_WINDOW))):
        with pytest.raises(ProtocolBroken):
            came(channel, offset, data)
    came(channel, 5, b"", end=True)
    with pytest.raises(ProtocolBroken):
        came(channel, 5, b"after its end")


async def test_the_window_grows_with_what_was_taken_and_not_for_a_session_that_does_not_read(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID)
    came(channel, 0, bytes(UP_WINDOW // 2))
    came(channel, UP_WINDOW // 2, bytes(UP_WINDOW // 2))
    assert plane.sent == []
    while plane.sent == []:
        assert len(channel.receive_nowait() or b"") == RECEIVE_BYTES
    # A client that is held may exceed what was taken by one read, so that a transcript that is full stays nearly so.
    assert plane.sent == [WindowRecord(ID, channel.taken + HELD_WINDOW, channel.taken - KEPT_BEHIND)]
    assert channel.taken == UP_WINDOW


async def test_a_connection_that_is_our_own_has_a_wide_window(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID, half=True)
    came(channel, 0, bytes(UP_WINDOW // 2))
    while channel.receive_nowait():
        pass
    assert plane.sent == [WindowRecord(ID, UP_WINDOW + UP_WINDOW // 2, 0)]


async def test_words_for_a_client_that_others_may_go_on_with_are_taken_whole_or_not_at_all(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID)
    channel.answer(3, ((24, 17),))
    assert channel.send_nowait(b"words") == 5
    assert plane.said == [SayRecord(ID, SayFlag.NONE, 3, b"words", ((24, 17),))]
    while (sent := channel.send_nowait(bytes(DATA_BYTES))) != 0:
        assert sent == DATA_BYTES
    room = DOWN_WINDOW - sum(len(record.data) for record in plane.said)
    assert 0 < room < DATA_BYTES
    assert channel.send_nowait(bytes(room)) == room
    assert channel.send_nowait(b"x") == 0
    channel.may_say(WindowRecord(ID, 2 * DOWN_WINDOW, DOWN_WINDOW))
    assert channel.send_nowait(b"x") == 1
    with pytest.raises(ProtocolBroken):
        channel.may_say(WindowRecord(ID, 9 * DOWN_WINDOW, 3 * DOWN_WINDOW))


async def test_what_was_answered_without_words_is_told_at_once(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID)
    channel.say_answered()
    assert plane.sent == []
    channel.answer(1, ((0, 9),))
    channel.say_answered()
    assert plane.said == [SayRecord(ID, SayFlag.NONE, 1, b"", ((0, 9),))]


async def test_a_client_of_our_own_is_said_so_once_and_has_no_transcript(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID)
    channel.answer(1, ((0, 9),))
    channel.own()
    channel.own()
    channel.answer(9, ((9, 9),))
    assert await send(channel, bytes(2 * DATA_BYTES)) == 2
    assert [(record.flags, record.drops) for record in plane.said] == [(SayFlag.OWN, ())] * 3


async def send(channel: PlaneChannel, data: bytes) -> int:
    before = len(channel._plane.said)  # type: ignore[attr-defined]
    await channel.send_all(data)
    return len(channel._plane.said) - before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("hangup", "kind"), [(Hangup.LEFT, PeerLeft), (Hangup.BROKEN, TransportError), (Hangup.FLOOD, OverLimit)]
)
async def test_how_the_peer_went_is_the_same_error_as_on_a_socket(
    plane: FakePlane, hangup: Hangup, kind: type[TransportError]
) -> None:
    channel = PlaneChannel(plane, ID)
    came(channel, 0, b"before")
    channel.gone(GoneRecord(ID, hangup, "TLS_CONTROL_RECORDS"))
    assert channel.receive_nowait() == b"before"
    with pytest.raises(kind):
        channel.receive_nowait()
    with pytest.raises(kind):
        await channel.peek(1)
    with trio.fail_after(1):
        await channel.wait_hangup()
    if hangup is Hangup.FLOOD:
        assert channel.send_nowait(b"GOAWAY") == 6
    else:
        with pytest.raises(kind):
            channel.send_nowait(b"GOAWAY")


async def test_a_peer_that_hung_up_behind_unread_bytes_is_noticed_and_they_can_be_read(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID, b"unread")
    channel.gone(GoneRecord(ID, Hangup.HUNG_UP, ""))
    await channel.wait_hangup()
    assert channel.receive_nowait() == b"unread"
    assert channel.receive_nowait() is None


async def test_it_is_closed_in_good_order_once_the_plane_has(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.close_gracefully)
        await trio.testing.wait_all_tasks_blocked()
        assert plane.sent == [ShutRecord(ID, Shutting.GRACEFUL, 0)]
        assert plane.forgotten == []
        channel.closed()
    channel.close()
    assert plane.sent == [ShutRecord(ID, Shutting.GRACEFUL, 0)]
    assert plane.forgotten[0] == ID
    with pytest.raises(TransportError):
        channel.send_nowait(b"x")


async def test_one_that_is_cancelled_while_it_closes_is_reset(plane: FakePlane) -> None:
    channel = PlaneChannel(plane, ID)
    with trio.move_on_after(0):
        await channel.close_gracefully()
    assert plane.sent == [ShutRecord(ID, Shutting.GRACEFUL, 0), ShutRecord(ID, Shutting.RESET, 0)]


async def test_a_lost_plane_breaks_its_channels_and_a_go_closes_nothing(plane: FakePlane) -> None:
    lost, gone = PlaneChannel(plane, ID), PlaneChannel(plane, ID + 1)
    lost.lost("the data plane is gone")
    with pytest.raises(TransportError, match="gone"):
        await lost.receive_some()
    with pytest.raises(TransportError, match="gone"):
        await lost.send_all(b"x")
    gone.detached()
    await gone.close_gracefully()
    assert plane.sent == []
