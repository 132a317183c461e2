"""The program that reads requests under ASan and UBSan (tests/native/asker)."""

import contextlib
import itertools
import struct
import subprocess
from collections.abc import Iterator
from typing import IO

from beds.driver_build import build_asker
from beds.fuzz.asked import OWN_PATHS, Known, known_of
from beds.fuzz.requests import Asked
from bentpipe.native.request import TokenRequest

NO_TEXT = 0xFFFFFFFF
SATELLITE = struct.Struct("II64s64s")
REQUEST = struct.Struct(f"{SATELLITE.size}s32sIIII")
"""struct bp_satellite and struct bp_request."""


class Asker:
    """The running program."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        command = [bytes(build_asker("address,undefined")), *OWN_PATHS]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    def read(self, asked: Asked) -> Known | None:
        """Read a request. Returns None if it is unusual. Raises AssertionError if the program ends."""
        parts = list(itertools.chain.from_iterable(asked.headers))
        texts = b"".join(_text(each) for each in (asked.server_name, asked.domain))
        sizes = struct.pack(f"{1 + len(parts)}I", len(asked.headers), *map(len, parts))
        text = b"".join(parts)
        self._say(b"r" + texts + sizes + text)
        known = self._hear(1)
        satellite, digest, *spans = REQUEST.unpack(self._hear(REQUEST.size))
        org_bytes, name_bytes, org, name = SATELLITE.unpack(satellite)
        if known == b"\0":
            return None
        traces = [text[at : at + size] for at, size in zip(spans[::2], spans[1::2], strict=True)]
        return known_of(TokenRequest(org[:org_bytes].decode(), name[:name_bytes].decode(), digest, *traces))

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin
        return self._process.stdin

    def _say(self, data: bytes) -> None:
        self._stdin.write(data)

    def _hear(self, size: int) -> bytes:
        assert self._process.stdout
        self._stdin.flush()
        data = self._process.stdout.read(size)
        if len(data) < size:
            _, words = self._process.communicate(timeout=60)
            raise AssertionError(f"the program has ended: {words.decode(errors='replace')}")
        return data

    def close(self) -> None:
        """End it. Raises AssertionError unless it ended well and silently."""
        _, words = self._process.communicate(timeout=60)
        assert (self._process.returncode, words) == (0, b""), words.decode(errors="replace")


def _text(value: str | None) -> bytes:
    data = b"" if value is None else value.encode()
    return struct.pack("I", NO_TEXT if value is None else len(data)) + data


@contextlib.contextmanager
def asker() -> Iterator[Asker]:
    """Start the program. Raises AssertionError unless it ends well."""
    made = Asker()
    yield made
    made.close()
