"""Reads the trace that a request belongs to: the fields `traceparent` and `tracestate` of W3C Trace Context. Pure.

https://www.w3.org/TR/trace-context/. A field that is malformed is as if it were not there (§3.2.2, §3.3.1).
"""

import re

from bentpipe.proto.events import HeaderList

TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[ -~]*)?")
"""§3.2: version, trace, parent, flags; a later version may add to them."""
TRACEPARENT_BYTES = 128
TRACESTATE_BYTES = 512
"""§3.3.1.1: at least so much is to be passed on; a longer one is left out."""


def trace_context(headers: HeaderList) -> tuple[str, str]:
    """(traceparent, tracestate) of a request; ("", "") if it belongs to no trace."""
    parents = [value for name, value in headers if name == b"traceparent"]
    if len(parents) != 1 or len(parents[0]) > TRACEPARENT_BYTES or not TRACEPARENT.fullmatch(parents[0]):
        return "", ""
    if parents[0].startswith(b"00") and len(parents[0]) != 55:
        return "", ""  # §3.2.2.2: version 00 has nothing behind its flags
    state = b",".join(value for name, value in headers if name == b"tracestate")
    fits = len(state) <= TRACESTATE_BYTES and state.isascii()
    return parents[0].decode(), state.decode() if fits else ""
