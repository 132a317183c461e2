"""Carries out what a daemon asks for. Owns the satellites; knows nothing of sockets beyond a connection's `send`.

A request that cannot be carried out is answered with REFUSED: the errno, and words for people. Nothing here decides about a
satellite, and nothing waits: what takes time is watched by the loop and answered later.
"""

import bisect
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bentpipe.daemon.keeper.child import FAILURE, STEPS, Command, Spawned, spawn
from bentpipe.daemon.keeper.connection import DaemonConnection
from bentpipe.daemon.keeper.containment import Isolator
from bentpipe.daemon.keeper.loop import Loop
from bentpipe.daemon.keeper.protocol import (
    MOST_SATELLITES,
    NOTE_BYTES,
    WORDS_BYTES,
    Flag,
    Kind,
    Malformed,
    Message,
    Tag,
)
from bentpipe.daemon.keeper.satellite import KeptSatellite
from bentpipe.daemon.keeper.users import Users

BIRTH_BYTES = 8


class Asked(NamedTuple):
    """A request that is answered later."""

    connection: DaemonConnection
    number: int


class RequestRefused(Exception):
    """The request is not carried out."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.errno = number


class Requests:
    """The satellites, and the requests about them. `users` is None if they have no users of their own; `why` says why."""

    def __init__(
        self, loop: Loop, isolator: Isolator, users: Users | None, why: str, tell: Callable[[KeptSatellite], None]
    ) -> None:
        self._loop, self._isolator, self._users, self._why, self._tell_exit = loop, isolator, users, why, tell
        self._satellites: dict[str, KeptSatellite] = {}
        self._starting: dict[str, Asked] = {}
        self._removals: dict[str, Asked] = {}
        self._table: dict[int, Callable[[DaemonConnection, Message], None]] = {
            Kind.NEXT: self._next,
            Kind.SPAWN: self._spawn,
            Kind.END: functools.partial(self._act, KeptSatellite.end),
            Kind.FREEZE: functools.partial(self._act, KeptSatellite.freeze),
            Kind.THAW: functools.partial(self._act, KeptSatellite.thaw),
            Kind.KILL: functools.partial(self._act, KeptSatellite.kill),
            Kind.LOOK: self._look,
            Kind.READ: self._read,
            Kind.RELEASE: self._release,
            Kind.REMOVE: self._remove,
        }

    @property
    def satellites(self) -> tuple[KeptSatellite, ...]:
        """All that were not released."""
        return tuple(self._satellites.values())

    @property
    def is_idle(self) -> bool:
        """Whether no request waits for a process that is to be started, or for files that are being deleted."""
        return not self._starting and not self._removals

    def resume(self, satellite: KeptSatellite) -> None:
        """Go on with one that an earlier program of this process had."""
        self._satellites[satellite.name] = satellite
        satellite.watch_on(self._tell_exit)

    def serve(self, connection: DaemonConnection, message: Message) -> None:
        """Carry out one request, and answer it now or later. Raises Malformed."""
        carry_out = self._table.get(message.kind)
        try:
            if carry_out is None:
                raise RequestRefused(errno.ENOSYS, f"this keeper knows no request of kind {message.kind}")
            carry_out(connection, message)
        except RequestRefused as refusal:
            refuse(connection, message.number, refusal.errno, str(refusal))
        except OSError as error:
            refuse(connection, message.number, error.errno or errno.EIO, error.strerror or str(error))

    def release_dead(self) -> None:
        """Let go of all whose processes have ended, when no daemon will ask for them any more."""
        for satellite in self.satellites:
            if satellite.status is not None and satellite.containment.is_empty():
                del self._satellites[satellite.name]
                satellite.release()

    def _found(self, message: Message) -> KeptSatellite:
        name = message.name()
        try:
            return self._satellites[name]
        except KeyError:
            raise RequestRefused(errno.ENOENT, f"no satellite {name}") from None

    def _next(self, connection: DaemonConnection, message: Message) -> None:
        after = "" if message.get(Tag.NAME) is None else message.name()
        names = sorted(self._satellites)
        at = bisect.bisect_right(names, after)
        connection.send(Kind.DONE, message.number, self._satellites[names[at]].fields() if at < len(names) else ())

    def _act(self, act: Callable[[KeptSatellite], None], connection: DaemonConnection, message: Message) -> None:
        act(self._found(message))
        connection.send(Kind.DONE, message.number)

    def _look(self, connection: DaemonConnection, message: Message) -> None:
        connection.send(Kind.DONE, message.number, self._found(message).fields())

    def _read(self, connection: DaemonConnection, message: Message) -> None:
        satellite, offset, number = self._found(message), message.value(Tag.OFFSET), message.number
        if satellite.waiter is not None:  # one waits for each satellite; an earlier one gets an empty answer
            before, answer = satellite.waiter
            satellite.waiter = None
            answer([(Tag.OFFSET, before), (Tag.OUTPUT, b"")])
        if offset is not None and message.get(Tag.WAIT) is not None:
            satellite.waiter = offset, lambda fields: connection.send(Kind.DONE, number, fields)
            satellite.answer_waiter()
        else:
            connection.send(Kind.DONE, number, satellite.output_fields(offset))

    def _release(self, connection: DaemonConnection, message: Message) -> None:
        satellite = self._found(message)
        if satellite.status is None or not satellite.flags() & Flag.EMPTY:
            raise RequestRefused(errno.EBUSY, "a process of it lives")
        del self._satellites[satellite.name]
        satellite.release()
        connection.send(Kind.DONE, message.number, [(Tag.STATUS, satellite.status)])

    def _spawn(self, connection: DaemonConnection, message: Message) -> None:
        name = message.name()
        if name in self._satellites or name in self._removals:
            raise RequestRefused(errno.EBUSY, "it is there already, or its files are being deleted")
        if len(self._satellites) >= MOST_SATELLITES:
            raise RequestRefused(errno.EAGAIN, f"the keeper has {MOST_SATELLITES} satellites, and takes no more")
        note = message.get(Tag.NOTE) or b""
        if len(note) > NOTE_BYTES:
            raise Malformed(f"a note of {len(note)} bytes")
        home, uid = None, None
        if message.get(Tag.OWN_USER) is not None:
            if self._users is None:
                raise RequestRefused(errno.EPERM, f"satellites cannot have users of their own: {self._why}")
            home, uid = self._users.claim(name)
        command = _command_of(message, home, uid)
        containment = self._isolator.contain(name, uid)
        try:
            spawned = self._spawn_in(command, containment.open_entrance())
        except BaseException:
            containment.remove()
            raise
        containment.adopt(spawned.pid)
        kept = note, message.value(Tag.GRACE_MS) or 0, uid, home
        satellite = KeptSatellite(self._loop, (name, os.urandom(BIRTH_BYTES).hex()), spawned, containment, kept)
        self._satellites[name] = satellite
        self._starting[name] = Asked(connection, message.number)
        satellite.watch(self._started, self._tell_exit)

    @staticmethod
    def _spawn_in(command: Command, entrance_fd: int | None) -> Spawned:
        try:
            return spawn(command, entrance_fd)
        finally:
            if entrance_fd is not None:
                os.close(entrance_fd)

    def _started(self, satellite: KeptSatellite, failure: bytes) -> None:
        asked = self._starting.pop(satellite.name)
        if len(failure) < FAILURE.size:
            asked.connection.send(Kind.DONE, asked.number, satellite.fields())
            return
        number, step = FAILURE.unpack(failure)
        if not asked.connection.is_open:
            return  # the next daemon finds it, with its exit status
        del self._satellites[satellite.name]
        satellite.release()
        refuse(asked.connection, asked.number, number, f"it could not {STEPS[step]}: {os.strerror(number)}")

    def _remove(self, connection: DaemonConnection, message: Message) -> None:
        name = message.name()
        if name in self._satellites:
            raise RequestRefused(errno.EBUSY, "it runs, or has not been released")
        if name in self._removals:
            self._removals[name] = Asked(connection, message.number)
            return
        pid = None if self._users is None else self._users.begin_removal(name)
        if pid is None or self._users is None:
            connection.send(Kind.DONE, message.number)
            return
        users, pid_fd = self._users, os.pidfd_open(pid)
        self._removals[name] = Asked(connection, message.number)

        def ended(_: int) -> None:
            self._loop.forget(pid_fd)
            os.close(pid_fd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            asked = self._removals.pop(name)
            try:
                if code:
                    raise OSError(abs(code), f"its files could not be deleted: {os.strerror(abs(code))}")
                users.finish_removal(name)
            except OSError as error:
                refuse(asked.connection, asked.number, error.errno or errno.EIO, error.strerror or str(error))
            else:
                asked.connection.send(Kind.DONE, asked.number)

        self._loop.watch(pid_fd, ended)


def refuse(connection: DaemonConnection, number: int, code: int, words: str) -> None:
    """Answer a request with an errno and words."""
    connection.send(Kind.REFUSED, number, [(Tag.ERRNO, code), (Tag.WORDS, words[:WORDS_BYTES])])


def _command_of(message: Message, home: Path | None, uid: int | None) -> Command:
    """Read a SPAWN. Raises Malformed."""
    arguments = message.all(Tag.ARGUMENT)
    environment = {}
    for each in message.all(Tag.ENVIRONMENT):
        name, equals, value = each.partition(b"=")
        if not name or not equals:
            raise Malformed("a variable of the environment without a name or a value")
        environment[name] = value
    folder = message.get(Tag.FOLDER) or b""
    if not arguments or not arguments[0].startswith(b"/"):
        raise Malformed("the program is not an absolute path")
    if any(b"\0" in each for each in (*arguments, folder, *environment, *environment.values())):
        raise Malformed("a NUL in an argument, a folder or the environment")
    return Command(arguments, environment, folder, message.value(Tag.SOFT_FILES), uid, home)
