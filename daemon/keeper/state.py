"""What a keeper hands to its successor: the program that the same process becomes by execve(2).

The process stays the same, so it stays the parent of its satellites: their exit statuses, their cgroups and their deaths
with their keeper (PR_SET_PDEATHSIG) need nothing. What only the program knew is here: what it was asked for, and what each
descriptor is. The text is JSON in memory, and after it the satellites' output. A later version may add a field; one
that changes the meaning of another takes a new STATE_VERSION, and reads the one before it.
"""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

STATE_VERSION = 1
LENGTH = struct.Struct("!I")
MOST_BYTES = 512 << 20
"""MOST_SATELLITES with all the output that is kept of each, and more."""


class UnknownState(Exception):
    """The text is not a state that this version can go on with."""


class KeptRun(NamedTuple):
    """One satellite. Descriptors are numbers; `output_fd` is None if its pipe is closed."""

    name: str
    birth: str
    note: bytes
    grace_ms: int
    uid: int | None
    home: Path | None
    pid: int
    pid_fd: int
    output_fd: int | None
    output: bytes
    output_end: int
    status: int | None
    is_ending: bool
    is_freezing: bool


class KeeperState(NamedTuple):
    """All of it. `isolation_folder` and its lock are None without cgroups, `users_lock_fd` without users."""

    listener_fd: int
    isolation: str
    """The name of an Isolation."""
    detail: str
    isolation_folder: Path | None
    isolation_lock_fd: int | None
    users_lock_fd: int | None
    troubles: tuple[str, ...]
    satellites: tuple[KeptRun, ...]

    @property
    def descriptors(self) -> list[int]:
        """All that the successor needs."""
        found = [self.listener_fd, self.isolation_lock_fd, self.users_lock_fd]
        for each in self.satellites:
            found += each.pid_fd, each.output_fd
        return [fd for fd in found if fd is not None]


def write_state(state: KeeperState) -> int:
    """Write it to a file in memory. Returns the descriptor, which the caller closes. Raises OSError."""
    told = {
        "state": STATE_VERSION,
        "listener": state.listener_fd,
        "isolation": state.isolation,
        "detail": state.detail,
        "isolation_folder": _text(state.isolation_folder),
        "isolation_lock": state.isolation_lock_fd,
        "users_lock": state.users_lock_fd,
        "troubles": state.troubles,
        "satellites": [
            {
                **each._asdict(),
                "note": each.note.hex(),
                "home": _text(each.home),
                "output": len(each.output),
            }
            for each in state.satellites
        ],
    }
    text = json.dumps(told).encode()
    fd = os.memfd_create("bentpipe-keeper", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(LENGTH.pack(len(text)) + text)
        for each in state.satellites:
            file.write(each.output)
    return fd


def read_state(fd: int) -> KeeperState:
    """Read it; the caller closes the descriptor. Raises UnknownState."""
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(MOST_BYTES)
        (length,) = LENGTH.unpack_from(data)
        told = json.loads(data[LENGTH.size : LENGTH.size + length])
        if told["state"] != STATE_VERSION:
            raise UnknownState(f"a keeper's state of version {told['state']}; this program knows {STATE_VERSION}")
        at = LENGTH.size + length
        satellites = []
        for each in told["satellites"]:
            satellites.append(_satellite_of(each, data[at : at + each["output"]]))
            at += each["output"]
        return KeeperState(
            told["listener"],
            told["isolation"],
            told["detail"],
            _path(told["isolation_folder"]),
            told["isolation_lock"],
            told["users_lock"],
            tuple(told["troubles"]),
            tuple(satellites),
        )
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise UnknownState(f"not a keeper's state: {type(error).__name__}: {error}") from error


def take_descriptors(state: KeeperState, more: Sequence[int] = ()) -> None:
    """They are this process's own from now on: no satellite gets them. Raises OSError if one is not open."""
    for fd in (*state.descriptors, *more):
        os.set_inheritable(fd, False)


def _satellite_of(told: dict[str, object], output: bytes) -> KeptRun:
    known = {name: told[name] for name in KeptRun._fields}
    known |= {"note": bytes.fromhex(str(told["note"])), "home": _path(told["home"]), "output": output}
    return KeptRun(**known)  # type: ignore[arg-type]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: object) -> Path | None:
    return None if text is None else Path(str(text))
