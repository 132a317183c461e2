"""A question to a satellite, which may be any server; the h2 library plays the server."""

from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from bentpipe.proto import limits
from bentpipe.proto.asking import MAX_ANSWER_BYTES, MAX_WORDS, AnswerError, Asking, printable
from bentpipe.proto.frames import ACK, FrameType, frame

MESSAGE = b"\0\0\0\0\2ok"
OK = ((":status", "200"), ("content-type", "application/grpc"))


class Server:
    """Answers one question."""

    def __init__(self) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.h2.initiate_connection()
        self.asking = Asking("/pkg.Service/Method", b"\0\0\0\0\0", authority="sat")
        self.events = self.h2.receive_data(self.asking.data_to_send())

    def tell(self) -> None:
        self.asking.receive_data(self.h2.data_to_send())

    def answer(self, status: str, words: str | None = None, body: bytes = MESSAGE) -> None:
        self.h2.send_headers(1, OK)
        if body:
            self.h2.send_data(1, body)
        trailers = [("grpc-status", status)] + ([] if words is None else [("grpc-message", words)])
        self.h2.send_headers(1, trailers, end_stream=True)
        self.tell()


def hear(asking: Asking, said: bytes) -> None:
    """In pieces."""
    for at in range(0, len(said), 100):
        asking.receive_data(said[at : at + 100])


def test_the_question_and_its_answer() -> None:
    server = Server()
    asked = next(event for event in server.events if isinstance(event, h2.events.RequestReceived))
    fields = dict(asked.headers or ())
    assert (fields[b":method"], fields[b":path"], fields[b":authority"]) == (b"POST", b"/pkg.Service/Method", b"sat")
    assert (fields[b"content-type"], fields[b"te"]) == (b"application/grpc", b"trailers")
    assert any(isinstance(event, h2.events.StreamEnded) for event in server.events)
    server.answer("0")
    assert server.asking.ended
    assert server.asking.message() == b"ok"
    assert dict(server.asking.headers)[b":status"] == b"200"


def test_an_answer_byte_by_byte() -> None:
    server = Server()
    server.h2.send_headers(1, OK)
    server.h2.send_data(1, MESSAGE)
    server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    for byte in server.h2.data_to_send():
        assert not server.asking.ended
        server.asking.receive_data(bytes((byte,)))
    assert server.asking.message() == b"ok"


def test_what_the_server_announces() -> None:
    server = Server()
    server.h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 7})
    server.tell()
    assert server.asking.announced.streams == 7
    assert server.asking.announced.window_bytes == 65_535


@pytest.mark.parametrize(
    ("status", "words", "body", "said"),
    [
        ("5", "no%20such%20service", b"", "grpc-status 5: no such service"),
        ("14", "line%0Aand %1B[31mcolour", b"", r"grpc-status 14: line\?and \?\[31mcolour"),
        ("x", None, MESSAGE, "grpc-status x: "),
        ("0", None, b"", "0 messages instead of one"),
        ("0", None, MESSAGE + MESSAGE, "2 messages instead of one"),
        ("0", None, MESSAGE[:-1], "message"),
        ("0", None, b"\1" + MESSAGE[1:], "compress"),
        ("0", None, b"\0\xff\xff\xff\xff", "MAX_ANSWER_BYTES"),
    ],
)
def test_answers_that_count_as_failed(status: str, words: str | None, body: bytes, said: str) -> None:
    server = Server()
    server.answer(status, words, body)
    assert server.asking.ended
    with pytest.raises(AnswerError, match=said):
        server.asking.message()


def test_an_answer_without_a_status() -> None:
    server = Server()
    server.h2.send_headers(1, OK, end_stream=True)
    server.tell()
    with pytest.raises(AnswerError, match="grpc-status missing"):
        server.asking.message()


@pytest.mark.parametrize(
    "give_up",
    [lambda server: server.h2.reset_stream(1), lambda server: server.h2.close_connection()],
    ids=["RST_STREAM", "GOAWAY"],
)
def test_a_server_that_gives_the_call_up(give_up: Callable[[Server], None]) -> None:
    server = Server()
    give_up(server)
    server.tell()
    assert server.asking.ended


SETTINGS = frame(FrameType.SETTINGS, 0, 0, b"")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        frame(FrameType.DATA, 0, 1, b"x"),
        SETTINGS + frame(FrameType.DATA, 0, 3, b"a stream that was never opened"),
        SETTINGS + frame(FrameType.PING, 0, 0, b"short"),
        SETTINGS + frame(FrameType.SETTINGS, ACK, 0, b"") + frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(4)),
        SETTINGS + frame(FrameType.PING, 0, 0, bytes(8)) * (limits.ASKED_FRAMES + 1),
        SETTINGS + frame(FrameType.PING, ACK, 0, bytes(8)) * (MAX_ANSWER_BYTES // 17 + 1),
    ],
    ids=["HTTP/1.1", "ssh", "no SETTINGS", "unknown stream", "bad length", "window of 0", "many frames", "many bytes"],
)
def test_a_server_that_breaks_http2_or_floods(said: bytes) -> None:
    asking = Asking("/pkg.Service/Method", b"\0\0\0\0\0")
    asking.data_to_send()
    with pytest.raises(AnswerError):
        hear(asking, said)


def test_words_of_another_machine_are_one_printable_line() -> None:
    assert printable("a\nb\x1b[0m\u200bc", 20) == "a?b?[0m?c"
    assert printable("x" * (MAX_WORDS + 1), MAX_WORDS) == "x" * MAX_WORDS
