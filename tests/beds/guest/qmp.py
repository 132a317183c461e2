"""QEMU's machine protocol, as much of it as a guest needs: one command after another on a Unix socket.

Source: qemu/docs/interop/qmp-spec. Events that come in between are left out.
"""

import json
import socket
import time
from pathlib import Path

ANSWER_DEADLINE_S = 120.0
"""For one answer. The longest, `migrate`, answers when it has begun."""
POLL_S = 0.05


class QmpError(Exception):
    """QEMU refused a command, or does not answer."""


class Qmp:
    """A connection to a QEMU's `-qmp unix:PATH,server=on`."""

    def __init__(self, path: Path, deadline_s: float) -> None:
        """Connect. Raises QmpError if QEMU does not listen within the deadline."""
        deadline = time.monotonic() + deadline_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError as exc:
                if time.monotonic() > deadline:
                    raise QmpError(f"QEMU does not listen at {path}: {exc}") from exc
                time.sleep(POLL_S)
        self._socket.settimeout(ANSWER_DEADLINE_S)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> dict[str, object]:
        """Send a command. Returns its answer; raises QmpError."""
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
            while line := self._lines.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error'].get('desc')}")
                if "return" in answer:
                    return dict(answer["return"])
        except OSError as exc:
            raise QmpError(f"{command}: {exc}") from exc
        raise QmpError(f"{command}: QEMU closed the connection")

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._lines.close()
        self._socket.close()
