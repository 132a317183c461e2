"""The trace of a request: what W3C Trace Context allows, and what is passed over."""

import pytest

from bentpipe.proto.trace_context import TRACESTATE_BYTES, trace_context

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traced_request() -> None:
    headers = ((b"traceparent", TRACE), (b"tracestate", b"a=1"), (b"tracestate", b"b=2"))
    assert trace_context(headers) == (TRACE.decode(), "a=1,b=2")


def test_a_later_version_may_have_more() -> None:
    later = b"01" + TRACE[2:] + b"-more"
    assert trace_context(((b"traceparent", later),)) == (later.decode(), "")


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"00", TRACE[:-1], TRACE + b"-x", TRACE.upper(), b"ff" + TRACE[2:], TRACE + b"0" * 200),
        *(b"00-" + b"0" * 32 + TRACE[35:], TRACE[:36] + b"0" * 16 + TRACE[52:], TRACE.replace(b"-", b"\xff")),
    ],
)
def test_what_is_malformed_is_as_if_it_were_not_there(value: bytes) -> None:
    assert trace_context(((b"traceparent", value), (b"tracestate", b"a=1"))) == ("", "")


def test_two_parents_are_none() -> None:
    assert trace_context(((b"traceparent", TRACE), (b"traceparent", TRACE))) == ("", "")


def test_a_long_state_is_left_out() -> None:
    headers = ((b"traceparent", TRACE), (b"tracestate", b"a" * (TRACESTATE_BYTES + 1)))
    assert trace_context(headers) == (TRACE.decode(), "")
