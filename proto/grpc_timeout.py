"""How long a gRPC client itself waits for its call: the header `grpc-timeout`. Pure.

gRPC over HTTP/2, "Requests": Timeout is "grpc-timeout" TimeoutValue TimeoutUnit, at most eight digits and a unit.
"""

import math
import re

from bentpipe.proto.events import HeaderList

TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

MARGIN_FRACTION, MARGIN_LEAST_S, MARGIN_MOST_S = 0.1, 0.5, 2.0
"""How long before its deadline a client must get our answer: its clock started earlier, by the time of the connection and of
the way here."""


def timeout_s(headers: HeaderList) -> float:
    """The timeout in seconds; infinity if there is none, or if it cannot be read (then the satellite decides)."""
    values = [value for name, value in headers if name == b"grpc-timeout"]
    found = TIMEOUT.fullmatch(values[0]) if len(values) == 1 else None
    return math.inf if found is None else int(found[1]) * UNITS_S[found[2]]


def tell_within_s(headers: HeaderList) -> float:
    """How long after the request an answer still reaches the client in time: a little less than the timeout."""
    whole_s = timeout_s(headers)
    margin_s = min(MARGIN_MOST_S, max(MARGIN_LEAST_S, whole_s * MARGIN_FRACTION), whole_s / 2)
    return whole_s - margin_s
