"""The satellite's first frame: what is changed, that nothing else is, however it is cut, and what is not a server."""

import h2.config
import h2.connection
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.http2 import EMPTY_SETTINGS
from bentpipe.proto.first_settings import UNLIMITED_STREAMS, Announcement, Entries, FirstSettings, NoServer
from bentpipe.proto.frames import ACK, FrameType, frame
from bentpipe.proto.payloads import INITIAL_WINDOW, LARGEST_WINDOW

TABLE, STREAMS, WINDOW, FRAME, LIST, CONNECT, PRIORITIES = 1, 3, 4, 5, 6, 8, 9

entries = st.lists(
    st.tuples(
        st.sampled_from((TABLE, STREAMS, WINDOW, FRAME, LIST, CONNECT, PRIORITIES, 0x9A9A)), st.integers(0, 2**32 - 1)
    ),
    max_size=8,
).map(tuple)
announcements = st.builds(Announcement, st.integers(1, UNLIMITED_STREAMS), st.integers(0, INITIAL_WINDOW))


def settings(said: Entries, flags: int = 0) -> bytes:
    return frame(FrameType.SETTINGS, flags, 0, b"".join(k.to_bytes(2) + v.to_bytes(4) for k, v in said))


def read(first: FirstSettings, data: bytes, size: int) -> bytes:
    return b"".join(first.receive_data(data[at : at + size]) for at in range(0, len(data), size))


def in_force(frames: list[Entries]) -> dict[int, int]:
    """What a client believes after these SETTINGS."""
    values = {STREAMS: UNLIMITED_STREAMS, WINDOW: INITIAL_WINDOW, PRIORITIES: 0}
    for said in frames:
        values |= dict(said)
    return values


def entries_of(data: bytes) -> Entries:
    size = int.from_bytes(data[:3])
    payload = data[9 : 9 + size]
    return tuple(
        (int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])) for at in range(0, size, 6)
    )


@given(announcements, entries, st.binary(max_size=60), st.integers(1, 40))
def test_the_client_believes_what_the_satellite_says(
    announced: Announcement, said: Entries, rest: bytes, size: int
) -> None:
    first = FirstSettings(announced)
    out = read(first, settings(said) + rest, size)
    changed = entries_of(out)
    assert out[9 + 6 * len(changed) :] == rest, "all behind the first frame passes byte for byte"
    ours = entries_of(announced.frame())
    believed = in_force([ours, changed])
    meant = in_force([said])
    assert {k: v for k, v in believed.items() if k != PRIORITIES} == {k: v for k, v in meant.items() if k != PRIORITIES}
    assert PRIORITIES not in dict(changed)
    assert believed[PRIORITIES] == 0, "as after our own"
    assert first.heard == Announcement(meant[STREAMS], meant[WINDOW])
    assert [e for e in changed if e in said] == [e for e in said if e[0] != PRIORITIES], "in order"


@given(announcements, entries, st.binary(max_size=30))
def test_nothing_comes_out_before_the_frame_is_whole(announced: Announcement, said: Entries, rest: bytes) -> None:
    whole = settings(said)
    for cut in range(len(whole)):
        first = FirstSettings(announced)
        assert first.receive_data(whole[:cut]) == b""
        assert first.heard is None
        assert first.receive_data(whole[cut:] + rest) == FirstSettings(announced).receive_data(whole + rest)


@pytest.mark.parametrize("value", [0, 1])
def test_parameter_9_is_taken_out_whatever_it_says(value: int) -> None:
    first = FirstSettings(Announcement())
    assert first.receive_data(settings(((PRIORITIES, value), (STREAMS, 7), (PRIORITIES, value)))) == settings(
        ((STREAMS, 7),)
    )


def test_what_we_announced_and_the_satellite_leaves_out_is_added() -> None:
    first = FirstSettings(Announcement(1, 0))
    assert first.receive_data(EMPTY_SETTINGS) == settings(((STREAMS, UNLIMITED_STREAMS), (WINDOW, INITIAL_WINDOW)))


def test_undefined_flags_stay() -> None:
    assert FirstSettings(Announcement()).receive_data(settings((), flags=0x40)) == settings((), flags=0x40)


def test_an_announcement_without_news_is_empty() -> None:
    assert Announcement().frame() == EMPTY_SETTINGS


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameType.PING, 0, 0, bytes(8)),
        frame(FrameType.GOAWAY, 0, 0, bytes(8)),
        settings((), flags=ACK),
        frame(FrameType.SETTINGS, 0, 1),
        frame(FrameType.SETTINGS, 0, 0, bytes(5)),
        (6 * 2731).to_bytes(3) + b"\4\0\0\0\0\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"220 mail\r\n",
        b"SSH-",
        b"\x15\x03\x01\x00\x02\x02\x28",
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1 << 20])
def test_what_is_not_a_server(data: bytes, size: int) -> None:
    with pytest.raises(NoServer):
        read(FirstSettings(Announcement()), data, size)


@given(st.binary(max_size=200), st.integers(1, 200))
def test_any_bytes_raise_nothing_but_no_server_however_they_are_cut(data: bytes, size: int) -> None:
    def outcome(size: int) -> bytes | None:
        try:
            return read(FirstSettings(Announcement()), data, size)
        except NoServer:
            return None

    assert outcome(size) == outcome(1 << 20)


@given(entries, st.sampled_from((Announcement(), Announcement(1, 0), Announcement(100, 16_384))))
def test_a_real_client_takes_both(said: Entries, announced: Announcement) -> None:
    valid = tuple(
        (k, min(v, LARGEST_WINDOW) if k == WINDOW else 1 << 14 if k == FRAME else v % 2 if k == CONNECT else v)
        for k, v in said
    )
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.receive_data(announced.frame())
    client.receive_data(FirstSettings(announced).receive_data(settings(valid)))
    assert client.remote_settings.initial_window_size == in_force([valid])[WINDOW]
