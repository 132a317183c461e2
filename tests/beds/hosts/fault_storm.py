"""Any exception at any call out of the control plane: by seed, at random places and times, while the storm is armed.

Only what the daemon does is hit: its tasks and their threads are told by a context variable from the test's own.
"""

import contextvars
import errno
import inspect
import json
import random
import sqlite3
import ssl
from collections import Counter
from collections.abc import Callable

import botocore.exceptions
import pytest

FAULTY: contextvars.ContextVar[bool] = contextvars.ContextVar("faulty", default=False)


class OfAPlugIn(Exception):
    """Of a library that nobody has heard of."""


def _client_error(code: str) -> Exception:
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return botocore.exceptions.ClientError(answer, "DescribeInstances")  # type: ignore[arg-type]


def _not_utf8() -> Exception:
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


KINDS: tuple[Callable[[], Exception], ...] = (
    *(
        lambda number=number: OSError(number, "injected")
        for number in (
            *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ENOSPC, errno.EACCES, errno.EPERM),
            *(errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EBADF, errno.EAGAIN, errno.EINTR, errno.ENOENT),
        )
    ),
    *(lambda kind=kind: kind("injected") for kind in (RuntimeError, ValueError, KeyError, TypeError, AssertionError)),
    *(lambda kind=kind: kind("injected") for kind in (RecursionError, AttributeError, IndexError, StopIteration)),
    lambda: MemoryError(),
    _not_utf8,
    *(
        lambda kind=kind: kind("injected")
        for kind in (sqlite3.OperationalError, sqlite3.DatabaseError, sqlite3.IntegrityError, sqlite3.InterfaceError)
    ),
    lambda: json.JSONDecodeError("injected", "", 0),
    lambda: ssl.SSLError("injected"),
    *(lambda code=code: _client_error(code) for code in ("Nonsense", "RequestLimitExceeded", "AuthFailure")),
    lambda: botocore.exceptions.EndpointConnectionError(endpoint_url="https://x"),
    lambda: botocore.exceptions.CredentialRetrievalError(provider="x", error_msg="injected"),
    lambda: OfAPlugIn("injected"),
    lambda: ExceptionGroup("injected", [ValueError(), OSError()]),
)


class Storm:
    """Wraps functions; `rate` is the share of their calls that fail while it is `armed`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.armed = False
        self.rate = 0.0
        self.hits: Counter[str] = Counter()
        """By place and kind of exception."""

    def strike(self, place: str) -> None:
        """Raise, perhaps."""
        if self.armed and FAULTY.get() and self._random.random() < self.rate:
            failure = self._random.choice(KINDS)()
            self.hits[f"{place} {type(failure).__name__}"] += 1
            raise failure

    def over(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        """Have calls of `owner.name` fail."""
        monkeypatch.setattr(owner, name, self.wrapped(owner, name))

    def wrapped(self, owner: object, name: str) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any function
        """`owner.name`, whose calls fail."""
        real = getattr(owner, name)
        place = f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
        if inspect.iscoroutinefunction(real):

            async def struck(*arguments: object, **named: object) -> object:
                self.strike(place)
                return await real(*arguments, **named)

        else:

            def struck(*arguments: object, **named: object) -> object:  # type: ignore[misc]
                self.strike(place)
                return real(*arguments, **named)

        return struck


def faulty_connection(storm: Storm) -> type[sqlite3.Connection]:
    """SQLite's own class takes no patches."""

    class Connection(sqlite3.Connection):
        def execute(self, *arguments: object) -> sqlite3.Cursor:
            storm.strike("sqlite3.execute")
            return super().execute(*arguments)  # type: ignore[arg-type]

    return Connection
