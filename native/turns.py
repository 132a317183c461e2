"""What threads in C tell of their turns. A turn is what a thread does between two waits: it serves nobody else meanwhile."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, cast

from bentpipe.native.lib import Pointer, check, ffi


@dataclasses.dataclass(frozen=True, slots=True)
class ThreadTurns:
    """One thread's turns."""

    turns: int
    long_turns: int
    """Turns of over 50 ms."""
    longest_s: float
    running_s: float
    """How long the present turn has lasted; 0 while the thread waits."""


@dataclasses.dataclass(frozen=True, slots=True)
class ThreadUse:
    """One thread's turns, and the CPU time that it has used."""

    turns: ThreadTurns
    cpu_s: float


class _CTurns(Protocol):
    turns: int
    long_turns: int
    longest_ns: int
    running_ns: int


def read_turns(read: Callable[[Pointer], int]) -> ThreadTurns:
    """Read the turns of one thread: `read` fills a struct bp_turns. Raises OSError."""
    ret = ffi.new("struct bp_turns *")
    check(read(ret))
    c = cast(_CTurns, ret)
    return ThreadTurns(c.turns, c.long_turns, c.longest_ns / 1e9, c.running_ns / 1e9)


def read_use(read: Callable[[Pointer, Pointer], int]) -> ThreadUse:
    """The same with its CPU time: `read` fills a uint64_t of nanoseconds, too. Raises OSError."""
    cpu_ns = ffi.new("uint64_t *")
    turns = read_turns(lambda ret: read(ret, cpu_ns))
    return ThreadUse(turns, cast(list[int], cpu_ns)[0] / 1e9)
