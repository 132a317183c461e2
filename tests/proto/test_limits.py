"""Every limit of proto/limits.py: what is at it is taken, what is one past it is refused by its name."""

import hpack
import pytest

from beds.http2 import EMPTY_SETTINGS
from beds.over_limits import CASES, HELD, PING, START, Case, block
from bentpipe.proto import limits
from bentpipe.proto.answering import AnsweredCall, Answering
from bentpipe.proto.asking import AnswerError, Asking
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.frames import END_HEADERS, END_STREAM, FrameType, frame
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.grpc_status import encode_grpc_message

NAMED_OTHERWISE = {"PING_BURST": "PING_PER_S"}
TESTED_BELOW = {
    "TRANSCRIPT_BYTES",
    "PING_PER_S",
    "ANSWERED_MESSAGE_BYTES",
    "ANSWERED_STREAMS",
    "ANSWERED_BURST",
    "ANSWERED_BYTES",
    "ANSWERED_PER_S",
    "ASKED_FRAMES",
    "FURTHER_FRAMES",  # in test_one_request.py
    "API_BYTES",  # in test_grpc_server.py, as all that follow
    "API_FRAMES",
    "API_FRAMES_PER_S",
    "API_MESSAGE_BYTES",
    "API_RESETS",
    "API_RESETS_PER_S",
    "API_STREAMS",
    "STATUS_MESSAGE_BYTES",
}


def test_no_limit_is_forgotten() -> None:
    assert {case.limit for case in CASES} | TESTED_BELOW == {name for name in vars(limits) if name.isupper()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.limit)
@pytest.mark.parametrize("size", [1 << 20, 4096, 7])
def test_at_the_limit_and_past_it(case: Case, size: int) -> None:
    greeting = Greeting()
    for at in range(0, len(case.at_limit), size):
        greeting.receive_data(case.at_limit[at : at + size], 0.0)

    def past() -> None:
        greeting = Greeting()
        for at in range(0, len(case.past_it), size):
            greeting.receive_data(case.past_it[at : at + size], 0.0)

    with pytest.raises(GreetingError) as error:
        past()
    assert (error.value.limit, error.value.error_code) == (NAMED_OTHERWISE.get(case.limit, case.limit), case.code)


def test_an_hpack_bomb_ends_at_the_list_not_at_the_memory() -> None:
    """One entry of the dynamic table, referred to over and over (CVE-2016-6581): 4 KiB for each byte."""
    bomb = hpack.Encoder().encode([(b"k", b"v" * 4000)], huffman=False) + b"\xbe" * 50
    with pytest.raises(GreetingError) as error:
        Greeting().receive_data(START + block(bomb), 0.0)
    assert error.value.limit == "HEADER_LIST_BYTES"


def test_a_full_transcript_refuses_nobody() -> None:
    greeting = Greeting()
    greeting.receive_data(HELD, 0.0)
    stream = 3
    while not greeting.transcript_full:
        greeting.receive_data(block(bytes(16_000), stream), 0.0)
        stream += 2
    assert greeting.kept_bytes < limits.TRANSCRIPT_BYTES + 17_000


def test_the_rate_of_pings_while_held_comes_back() -> None:
    greeting = Greeting()
    greeting.receive_data(HELD + PING * limits.PING_BURST, 0.0)
    for second in range(1, 100):
        greeting.receive_data(PING * int(limits.PING_PER_S), float(second))
    with pytest.raises(GreetingError):
        greeting.receive_data(PING * 3, 99.5)


def test_only_what_may_be_answered_is_kept_of_the_words() -> None:
    words = encode_grpc_message("ä" * 10_000, limits.STATUS_MESSAGE_BYTES)
    assert words == b"%C3%A4" * (limits.STATUS_MESSAGE_BYTES // 6)


HEALTH = hpack.Encoder().encode(
    [(":method", "POST"), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Check"), (":authority", "e")]
)


def answered(data: bytes, now_s: float = 0.0) -> list[object]:
    return list(Answering().receive_data(START + data, now_s))


@pytest.mark.parametrize("over_by", [0, 1])
def test_messages_that_are_answered(over_by: int) -> None:
    body = bytes(limits.ANSWERED_MESSAGE_BYTES + over_by)
    calls = answered(frame(FrameType.HEADERS, END_HEADERS, 1, HEALTH) + frame(FrameType.DATA, END_STREAM, 1, body))
    assert len(calls) == 1 - over_by


def request(stream: int, flags: int) -> bytes:
    # Without the dynamic table, so that each block stands for itself.
    return frame(FrameType.HEADERS, END_HEADERS | flags, stream, HEALTH if stream == 1 else b"\x83\x86\xbf\xbe")


def test_streams_that_are_answered() -> None:
    requests = [request(stream, END_STREAM) for stream in range(1, 2 * limits.ANSWERED_STREAMS + 3, 2)]
    assert [type(call) for call in answered(b"".join(requests[:-1]))] == [AnsweredCall] * limits.ANSWERED_STREAMS
    with pytest.raises(GreetingError):
        answered(b"".join(requests))


@pytest.mark.parametrize("over_by", [0, 1])
def test_the_budget_of_an_answered_connection(over_by: int) -> None:
    # The client's first SETTINGS cost as well.
    count = limits.ANSWERED_BURST - 1 + over_by
    if over_by:
        with pytest.raises(GreetingError) as error:
            answered(PING * count)
        assert error.value.limit == "ANSWERED_PER_S"
    else:
        answered(PING * count)


@pytest.mark.parametrize("over_by", [0, 1])
def test_what_may_be_said_to_a_question_of_ours(over_by: int) -> None:
    said = EMPTY_SETTINGS + PING * (limits.ASKED_FRAMES - 1 + over_by)
    asking = Asking("/grpc.health.v1.Health/Check", b"")
    if over_by:
        with pytest.raises(AnswerError, match="ASKED_FRAMES"):
            asking.receive_data(said)
    else:
        asking.receive_data(said)


def test_the_first_request_is_read_at_every_limit() -> None:
    for case in CASES:
        if case.limit in ("CONTINUATION_FRAMES", "HEADER_BLOCK_BYTES", "HEADER_LIST_BYTES", "HEADER_FIELDS"):
            greeting = Greeting()
            assert any(isinstance(event, RequestHeaders) for event in greeting.receive_data(case.at_limit, 0.0))
