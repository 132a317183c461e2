"""Refusals by the h2 library, read by h2 clients: every open stream is answered, whatever they sent before."""

import contextlib
import gc

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.http2 import EMPTY_SETTINGS, texts
from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import PREFACE, FrameType, frame
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.refusal import PIECE_BYTES, Refusal, goaway, too_late

HEADERS = [(":method", "POST"), (":scheme", "https"), (":path", "/a.B/C"), (":authority", "edge"), ("te", "trailers")]


def client(**settings: int) -> h2.connection.H2Connection:
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    made.initiate_connection()
    if settings:
        made.update_settings({h2.settings.SettingCodes[name]: value for name, value in settings.items()})
    return made


def refuse(said: bytes, message: str = "not now") -> bytes:
    refusal = Refusal()
    for at in range(0, len(said), PIECE_BYTES):
        refusal.receive_data(said[at : at + PIECE_BYTES])
    while refusal.refuse_some(GrpcStatus.UNAVAILABLE, message):
        pass
    return refusal.close()


def answered(events: list[h2.events.Event]) -> dict[int, tuple[str, str]]:
    found = {}
    for event in events:
        if isinstance(event, h2.events.ResponseReceived):
            headers = texts(event.headers)
            found[event.stream_id] = headers["grpc-status"], headers["grpc-message"]
    return found


@pytest.mark.untraced
def test_as_many_streams_as_may_be_held_are_all_answered() -> None:
    made = client()
    made.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1 + limits.HELD_HEADERS
    made.remote_settings.acknowledge()
    streams = list(range(1, 2 * limits.HELD_HEADERS + 2, 2))
    for stream_id in streams:
        made.send_headers(stream_id, HEADERS, end_stream=stream_id % 4 == 1)
    events = made.receive_data(refuse(made.data_to_send()))
    assert answered(events) == dict.fromkeys(streams, ("14", "not now"))
    [end] = [event for event in events if isinstance(event, h2.events.ConnectionTerminated)]
    assert (end.error_code, end.last_stream_id) == (0, streams[-1])


def test_streams_that_were_reset_are_not() -> None:
    made = client()
    for stream_id in (1, 3, 5):
        made.send_headers(stream_id, HEADERS)
    made.reset_stream(3)
    assert set(answered(made.receive_data(refuse(made.data_to_send())))) == {1, 5}


@pytest.mark.parametrize(
    "settings", [{"HEADER_TABLE_SIZE": 0}, {"INITIAL_WINDOW_SIZE": 0}, {"MAX_FRAME_SIZE": 1 << 20}]
)
def test_the_clients_settings_are_honoured(settings: dict[str, int]) -> None:
    made = client(**settings)
    for stream_id in (1, 3):
        made.send_headers(stream_id, HEADERS)
    assert set(answered(made.receive_data(refuse(made.data_to_send())))) == {1, 3}


def test_a_whole_window_of_data_changes_nothing() -> None:
    made = client()
    made.send_headers(1, HEADERS)
    for _ in range(5):
        made.send_data(1, bytes(13_107))
    assert answered(made.receive_data(refuse(made.data_to_send()))) == {1: ("14", "not now")}


def test_without_a_stream_goaway_has_the_words() -> None:
    [end] = [
        e
        for e in client().receive_data(refuse(PREFACE + EMPTY_SETTINGS))
        if isinstance(e, h2.events.ConnectionTerminated)
    ]
    assert end.additional_data == b"not now"


def test_nothing_is_said_to_a_client_that_said_goaway() -> None:
    made = client()
    made.send_headers(1, HEADERS)
    made.close_connection()
    assert refuse(made.data_to_send()) == b""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (too_late(), ErrorCode.NO_ERROR),
        (too_late(" (connection 1t3kq0-7h2m-00b4x)"), ErrorCode.NO_ERROR),
        (goaway(ErrorCode.ENHANCE_YOUR_CALM, "over the limit X", 1), ErrorCode.ENHANCE_YOUR_CALM),
    ],
)
def test_goaways_can_be_read_before_and_after_our_settings(words: bytes, code: ErrorCode) -> None:
    for before in (b"", EMPTY_SETTINGS):
        made = client()
        made.send_headers(1, HEADERS)
        [end] = [e for e in made.receive_data(before + words) if isinstance(e, h2.events.ConnectionTerminated)]
        assert end.error_code == code
        assert end.additional_data


def test_what_the_greeting_let_pass_and_h2_does_not_ends_in_its_goaway() -> None:
    refusal = Refusal()
    with pytest.raises(GreetingError):
        refusal.receive_data(PREFACE + EMPTY_SETTINGS + frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(4)))
    events = client().receive_data(refusal.close())
    assert any(isinstance(event, h2.events.ConnectionTerminated) for event in events)


def test_a_refusal_leaves_no_garbage() -> None:
    """The collector would have to find it, a thousand objects each, just when a crowd is refused."""
    made = client()
    made.send_headers(1, HEADERS)
    said = made.data_to_send()
    refuse(said)
    gc.collect()
    gc.disable()
    try:
        refuse(said)
        goaway(ErrorCode.NO_ERROR, "words")
        assert gc.collect() == 0
    finally:
        gc.enable()


@given(st.binary(max_size=300))
def test_any_bytes_raise_nothing_but_greeting_error(data: bytes) -> None:
    with contextlib.suppress(GreetingError):
        refuse(PREFACE + EMPTY_SETTINGS + data)
