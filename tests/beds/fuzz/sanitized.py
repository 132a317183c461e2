"""The greeting in C as a process under ASan and UBSan (tests/native/greeting), with the interface of the binding."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from beds.driver_build import build_reader
from beds.fuzz.asked_program import AskedProgram
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


class Process(AskedProgram):
    """The running program."""

    def __init__(self, program: Path) -> None:
        super().__init__([bytes(program)])
        self._limits = SanitizedLimits()
        [self.state_bytes] = struct.unpack("I", self.hear(4))
        self.stdin.write(self._limits.words)

    def reader(self) -> SanitizedReader:
        """Make a reader for a new client."""
        return SanitizedReader(self._limits, self)

    def ask(self, state: bytes, now_s: float, kept: bytes) -> tuple[int, bytes, Fields]:
        """One call. Returns the verdict, the state after it, and the fields."""
        self.stdin.write(state + struct.pack("dQ", now_s, len(kept)) + kept)
        [verdict] = struct.unpack("i", self.hear(4))
        after = self.hear(self.state_bytes)
        count, text_bytes = struct.unpack("II", self.hear(8))
        sizes = struct.unpack(f"{2 * count}I", self.hear(8 * count))
        text, parts, at = self.hear(text_bytes), [], 0
        for size in sizes:
            parts.append(text[at : at + size])
            at += size
        return verdict, after, tuple(zip(parts[::2], parts[1::2], strict=True))


@contextlib.contextmanager
def sanitized() -> Iterator[Process]:
    """Start the program. Raises AssertionError unless it ends well."""
    process = Process(build_reader("address,undefined"))
    yield process
    process.close()
