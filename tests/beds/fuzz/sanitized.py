"""The greeting in C as a process under ASan and UBSan (tests/native/greeting), with the interface of the binding."""

import contextlib
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from beds.driver_build import build_reader
from bentpipe.native.greeting import LIMITS, Fields, GreetingLimits, GreetingReader
from bentpipe.native.lib import ffi
from bentpipe.proto import limits


class SanitizedLimits(GreetingLimits):
    """The limits, and the fields that the process has decoded."""

    def __init__(self) -> None:
        values = {name: float(getattr(limits, name)) for name in LIMITS}
        super().__init__(values, limits.HEADER_FIELDS)
        self.words = struct.pack(f"{1 + len(LIMITS)}dI", 0.0, *values.values(), limits.HEADER_FIELDS)
        self.last: Fields = ()

    def decoded(self) -> Fields:
        return self.last


class SanitizedReader(GreetingReader):
    """One client's greeting; the process keeps nothing of it between two calls."""

    def __init__(self, made: SanitizedLimits, process: "Process") -> None:
        super().__init__(made)
        self._made = made
        self._process = process

    def next(self, kept: bytearray, now_s: float) -> int:
        state = cast("memoryview", ffi.buffer(self.pointer, self._process.state_bytes))
        own_limits = bytes(state)[:8]
        verdict, after, self._made.last = self._process.ask(bytes(state), now_s, bytes(kept))
        state[:] = own_limits + after[8:]
        return verdict


class Process:
    """The program. Leaving the context ends it, and raises AssertionError unless it ended well and silently."""

    def __init__(self, program: Path) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([program], stdin=pipe, stdout=pipe, stderr=pipe)
        self._limits = SanitizedLimits()
        [self.state_bytes] = struct.unpack("I", self._read(4))
        self._stdin.write(self._limits.words)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin
        return self._process.stdin

    def reader(self) -> SanitizedReader:
        """Make a reader for a new client."""
        return SanitizedReader(self._limits, self)

    def ask(self, state: bytes, now_s: float, kept: bytes) -> tuple[int, bytes, Fields]:
        """One call. Returns the verdict, the state after it, and the fields."""
        self._stdin.write(state + struct.pack("dQ", now_s, len(kept)) + kept)
        self._stdin.flush()
        [verdict] = struct.unpack("i", self._read(4))
        after = self._read(self.state_bytes)
        count, text_bytes = struct.unpack("II", self._read(8))
        sizes = struct.unpack(f"{2 * count}I", self._read(8 * count))
        text, parts, at = self._read(text_bytes), [], 0
        for size in sizes:
            parts.append(text[at : at + size])
            at += size
        return verdict, after, tuple(zip(parts[::2], parts[1::2], strict=True))

    def _read(self, size: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(size)
        if len(data) < size:
            _, words = self._process.communicate(timeout=60)
            raise AssertionError(f"the program has ended: {words.decode(errors='replace')}")
        return data

    def close(self) -> None:
        """End it."""
        _, words = self._process.communicate(timeout=60)
        assert (self._process.returncode, words) == (0, b""), words.decode(errors="replace")


@contextlib.contextmanager
def sanitized() -> Iterator[Process]:
    """Start the program. Raises AssertionError unless it ends well."""
    process = Process(build_reader("address,undefined"))
    yield process
    process.close()
