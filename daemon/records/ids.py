"""Ids of connections: short, unique across hosts, in the order of time, and easy to say on the telephone.

`1t3kq0-7h2m-00b4x`: the second of the accept (6 characters), the host (4), and a number (5), in Crockford's base 32
(https://www.crockford.com/base32.html), which has no i, l, o and u. Sorting ids as text sorts them by time. The number
begins at random in each run of the daemon, so that two runs in the same second do not meet.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
TIME_CHARS, HOST_CHARS, NUMBER_CHARS = 6, 4, 5
"""30 bits of seconds last until 2059; 20 bits of a host's name; 33 million connections before a number comes again."""
EPOCH_S = 1_735_689_600
"""2025-01-01T00:00:00Z."""
ID_CHARS = TIME_CHARS + HOST_CHARS + NUMBER_CHARS + 2

_FORM = re.compile(rf"([{ALPHABET}]{{{TIME_CHARS}}})([{ALPHABET}]{{{HOST_CHARS}}})([{ALPHABET}]{{{NUMBER_CHARS}}})")
_MISREAD = str.maketrans({"i": "1", "l": "1", "o": "0", "-": "", " ": ""})
"""What people write for a character that the alphabet leaves out."""


class NotAnId(ValueError):
    """The text is not a connection's id; `str()` is for the person who wrote it."""


def _digits(number: int, chars: int) -> str:
    return "".join([ALPHABET[number >> shift & 31] for shift in range(5 * chars - 5, -1, -5)])


def host_part(host: str) -> str:
    """The part of an id that stands for a host of this name."""
    return _digits(int.from_bytes(hashlib.sha256(host.encode()).digest()[:4]) >> 12, HOST_CHARS)


class IdMaker:
    """Makes the ids of one run of the daemon. `wall` returns seconds since the epoch."""

    def __init__(self, host: str, wall: Callable[[], float] = time.time) -> None:
        self._middle = f"-{host_part(host)}-"
        self._wall = wall
        self._number = random.getrandbits(5 * NUMBER_CHARS)
        self._second = -1
        self._beginning = ""

    def make(self) -> str:
        """An id for a connection that was accepted now."""
        second = max(0, int(self._wall()) - EPOCH_S)
        if second != self._second:
            self._second, self._beginning = second, _digits(second, TIME_CHARS) + self._middle
        self._number += 1
        return self._beginning + _digits(self._number, NUMBER_CHARS)


def parse_id(text: str) -> str:
    """Read an id as a person writes it: in any case, with or without dashes, with o for 0. Raises NotAnId."""
    found = _FORM.fullmatch(text.strip().lower().translate(_MISREAD))
    if found is None:
        raise NotAnId(f"{text!r} is not a connection's id; an id looks like 1t3kq0-7h2m-00b4x")
    return "-".join(found.groups())


def time_of(connection_id: str) -> float:
    """When the connection was accepted: seconds since the epoch, to the second."""
    second = 0
    for character in connection_id[:TIME_CHARS]:
        second = second << 5 | ALPHABET.index(character)
    return float(EPOCH_S + second)


def quote(connection_id: str) -> str:
    """What follows words for a client, so that its user can quote the id."""
    return f" (connection {connection_id})"
