"""A program that answers by its standard output what it is asked by its standard input, under sanitizers."""

import subprocess
from collections.abc import Sequence
from typing import IO

END_DEADLINE_S = 60.0


class AskedProgram:
    """The running program."""

    def __init__(self, command: Sequence[bytes]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    @property
    def stdin(self) -> IO[bytes]:
        """What it is asked."""
        assert self._process.stdin
        return self._process.stdin

    def hear(self, size: int) -> bytes:
        """Read `size` bytes of its answer. Raises AssertionError, with its words, if it ends."""
        assert self._process.stdout
        self.stdin.flush()
        data = self._process.stdout.read(size)
        if len(data) < size:
            _, words = self._process.communicate(timeout=END_DEADLINE_S)
            raise AssertionError(f"the program has ended: {words.decode(errors='replace')}")
        return data

    def close(self) -> None:
        """End it. Raises AssertionError unless it ended well and silently."""
        _, words = self._process.communicate(timeout=END_DEADLINE_S)
        assert (self._process.returncode, words) == (0, b""), words.decode(errors="replace")
