"""What is fuzzed, without the fuzzer: one input, every parser of the wire that a stranger or a satellite reaches, and what
must hold.

Only GreetingError (of a satellite: NoServer) may come out; nothing is kept that did not come; no limit of memory is
passed; how the bytes are cut does not matter.
"""

import contextlib

from beds.fuzz import asked
from beds.fuzz.both import Both
from beds.fuzz.openings import Flight
from beds.fuzz.requests import Asked
from beds.http2 import EMPTY_SETTINGS
from bentpipe.native.greeting import nghttp2_version
from bentpipe.proto import limits
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.answering import AnsweredCall, Answering
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import NotHttp2, RequestHeaders
from bentpipe.proto.first_settings import Announcement, FirstSettings, NoServer
from bentpipe.proto.frames import HEADER_BYTES, PREFACE
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.health import HealthError, decode_request
from bentpipe.proto.one_request import OneRequest
from bentpipe.proto.proxy_protocol import ProxyHeader, ProxyHeaderError, ProxyRule, parse_header
from bentpipe.proto.refusal import PIECE_BYTES, Refusal, goaway
from bentpipe.proto.request import MetadataError, parse_request

READ_BYTES = 16 * 1024
"""As much as the edge reads at once, by which memory may pass a limit."""


def greet(flights: list[bytes], size: int) -> tuple[list[object], str, bytes]:
    """Feed flights in pieces of `size`. Returns the events, how it ended, and what we said."""
    greeting = Greeting()
    events: list[object] = []
    said, end = b"", "open"
    try:
        for flight in flights:
            for at in range(0, len(flight), size):
                if NotHttp2 not in map(type, events):  # the edge reads no further either
                    events += greeting.receive_data(flight[at : at + size], 0.0)
                    said += greeting.data_to_send()
            greeting.end_of_first_flight()
    except GreetingError as exc:
        # What came before the error in one piece is not told: the connection ends either way.
        end, events = str(exc), []
        goaway(exc.error_code, exc.message, greeting.last_stream)
    else:
        assert greeting.kept_bytes <= min(len(b"".join(flights)), limits.TRANSCRIPT_BYTES + READ_BYTES)
        if greeting.awaiting_ack:
            greeting.ack_filter().receive_data(b"")
        refuse(greeting.take_all())
    for event in events:
        if isinstance(event, RequestHeaders):
            assert sum(len(n) + len(v) + 32 for n, v in event.headers) <= limits.HEADER_LIST_BYTES
            with contextlib.suppress(MetadataError):
                parse_request(event.headers)
            asked.compare(Asked(event.headers))
    return events, end, said + greeting.data_to_send()


def compare(flights: list[bytes], size: int) -> None:
    """Feed the greeting in C and its oracle the same, in pieces of `size`, and compare them after each."""
    both = Both()
    for flight in flights:
        pieces = [flight[at : at + size] for at in range(0, len(flight), size)]
        both.feed(Flight(piece, float(number), last=number == len(pieces)) for number, piece in enumerate(pieces, 1))


def refuse(said: bytes) -> None:
    """Refuse somebody who said this so far."""
    refusal = Refusal()
    try:
        for at in range(0, len(said), PIECE_BYTES):
            refusal.receive_data(said[at : at + PIECE_BYTES])
        while refusal.refuse_some(GrpcStatus.UNAVAILABLE, "fuzzed"):
            pass
    except GreetingError:
        pass
    refusal.close()


def take_ack(data: bytes, size: int) -> tuple[bytes, bool, str]:
    """Pass frames through the filter in pieces of `size`. Returns what went on, whether the ACK was found, the error."""
    ack_filter = AckFilter()
    out = b""
    try:
        for at in range(0, len(data), size):
            out += ack_filter.receive_data(data[at : at + size])
    except GreetingError as exc:
        return b"", ack_filter.done, str(exc)
    assert len(out) <= len(data) - HEADER_BYTES * ack_filter.done
    return out, ack_filter.done, ""


def hear(data: bytes, size: int) -> tuple[bytes, Announcement | None, str]:
    """Take a satellite's first bytes in pieces of `size`. Returns what went on, what its SETTINGS say, the error."""
    first = FirstSettings(Announcement(1, 0))
    out = b""
    try:
        for at in range(0, len(data), size):
            out += first.receive_data(data[at : at + size])
    except NoServer as exc:
        assert not out
        return b"", None, type(exc).__name__
    assert len(out) <= len(data) + len(Announcement(1, 0).frame()) - HEADER_BYTES
    assert out or first.heard is None
    return out, first.heard, ""


def hold_to_one(data: bytes, size: int) -> tuple[bytes, bytes, bool, str]:
    """Allow one request, in pieces of `size`, having told so before. Returns what went on, what was said, how it ended."""
    one = OneRequest()
    one.tell()
    out = said = b""
    try:
        for at in range(0, len(data), size):
            out += one.receive_data(data[at : at + size])
            said += one.data_to_send()
    except GreetingError as exc:
        return b"", b"", one.done, str(exc)
    assert len(out) <= len(data)
    return out, said, one.done, ""


def proxied(data: bytes, size: int) -> None:
    """Take the bytes for a PROXY header: what is said of a beginning holds for all of it."""
    found: list[ProxyHeader | ProxyRule | None] = []
    for end in (size, len(data)):
        try:
            found.append(parse_header(data[:end]))
        except ProxyHeaderError as exc:
            found.append(exc.rule)
    assert found[0] is None or found[0] == found[1]


def answer(data: bytes) -> None:
    """Feed a connection that we answer ourselves."""
    answering = Answering()
    try:
        for call in answering.receive_data(data, 0.0):
            if isinstance(call, AnsweredCall):
                try:
                    decode_request(call.body)
                except HealthError:
                    answering.finish(call.stream_id, GrpcStatus.INVALID_ARGUMENT)
                answering.send_text(call.stream_id, 405, b"no")
    except GreetingError:
        pass
    answering.data_to_send()


def one_input(data: bytes) -> None:
    """What the fuzzer calls. The last byte chooses the cut and whether the preface is given for free.

    The last, so that a recorded opening is an input as it stands.
    """
    if not data:
        return
    choice, rest = data[-1], data[:-1][:READ_BYTES]
    if choice & 1:
        rest = PREFACE + EMPTY_SETTINGS + rest
    cut = len(rest) * (choice >> 2) // 64
    flights = [rest[:cut], rest[cut:]]
    whole = greet(flights, READ_BYTES)
    if choice & 2:
        assert greet(flights, 1 + (choice >> 4)) == whole, "how the bytes are cut made a difference"
    if nghttp2_version() is not None:
        compare(flights, 1 + (choice >> 4) if choice & 2 else READ_BYTES)
    behind = rest.removeprefix(PREFACE)
    assert take_ack(behind, 1 + (choice >> 4)) == take_ack(behind, READ_BYTES), (
        "how the bytes are cut made a difference"
    )
    assert hear(behind, 1 + (choice >> 4)) == hear(behind, READ_BYTES), "how the bytes are cut made a difference"
    assert hold_to_one(rest, 1 + (choice >> 4)) == hold_to_one(rest, READ_BYTES), (
        "how the bytes are cut made a difference"
    )
    asked.compare(asked.asked_of(rest))
    proxied(rest, cut)
    answer(rest)
