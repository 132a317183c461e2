"""The keeper's process: its socket, the one daemon that has the seat, and its end.

One daemon at a time may ask: the one with the seat. A daemon that dies gives the seat up by that. Before the next one gets
it, the keeper carries out what the dead one had still sent. With `outlive` the keeper ends by itself when no daemon has had
the seat for so long, or at once if it has nothing to keep. Without it, it stays until it is stopped.
"""

import collections
import contextlib
import errno
import functools
import gc
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

from bentpipe.daemon.keeper.build import build_of_files
from bentpipe.daemon.keeper.connection import DaemonConnection
from bentpipe.daemon.keeper.containment import Isolation
from bentpipe.daemon.keeper.isolation import open_isolator, resume_isolator
from bentpipe.daemon.keeper.loop import Loop
from bentpipe.daemon.keeper.protocol import (
    HELLO_DEADLINE_S,
    MOST_TROUBLES,
    OLDEST_VERSION,
    VERSION,
    WORDS_BYTES,
    Kind,
    Malformed,
    Message,
    Tag,
    common_version,
)
from bentpipe.daemon.keeper.renewal import HELD, STATE, Renewal, Told, drop_capabilities
from bentpipe.daemon.keeper.requests import Requests, refuse
from bentpipe.daemon.keeper.satellite import KeptSatellite
from bentpipe.daemon.keeper.state import KeeperState
from bentpipe.daemon.keeper.users import UidRange, Users
from bentpipe.daemon.private_socket import listen_private

CONNECTIONS, BACKLOG = 8, 64
"""At once, and in the socket's queue: peers that say nothing lose their connection after HELLO_DEADLINE_S."""
FIRST_DAEMON_S = 60.0
"""How long a keeper with `outlive` waits for its first daemon."""
READY = b"ready\n"
"""What a detached keeper prints when it listens."""
ACCEPT_PAUSE_S = 1.0
"""Before the next accept, after one that failed because there were no descriptors or no memory."""
FILE_LOOK_S = 5.0
"""Between two looks for the socket's file."""
SIGNAL_BYTES = 64
END_POLL_S = 0.01
END_EXTRA_S = 5.0
"""After the grace of the last satellite: for SIGKILL to work."""


class Options(NamedTuple):
    """What the keeper is started with."""

    socket: Path
    uids: UidRange | None
    """Without it satellites run as the keeper's own user."""
    directory: Path
    """For private folders; used with `uids`."""
    isolation: Isolation | None
    outlive_s: float | None
    is_detached: bool
    """Whether a daemon has started it, whose output it must not keep open."""


class KeeperProgram:
    """The keeper. `run` returns when it has been stopped, and nothing of its satellites is left."""

    def __init__(self, options: Options, listener: socket.socket, state: KeeperState | None = None) -> None:
        """With the `state` of an earlier program of this process, go on with its satellites.

        Raises OSError if the isolation that is demanded is not available.
        """
        self._options, self._listener = options, listener
        self._loop = Loop()
        self._build = build_of_files()
        self._users, self._why = _open_users(options, None if state is None else state.users_lock_fd)
        self._isolator = open_isolator(options.isolation) if state is None else resume_isolator(state)
        self._requests = Requests(self._loop, self._isolator, self._users, self._why, self._tell_exit)
        self._connections: list[DaemonConnection] = []
        self._seat: DaemonConnection | None = None
        self._troubles: collections.deque[str] = collections.deque(maxlen=MOST_TROUBLES)
        self._vacant_round = 0
        self._stopping = self._ended = self._is_lost = False
        arguments = [each for each in sys.argv[1:] if not each.startswith(f"{STATE}=")]
        self._renewal = Renewal(self._loop, arguments, self._state, self._not_renewed)
        if state is None and self._users is not None:
            self._users.sweep()
        for each in () if state is None else state.satellites:
            containment = self._isolator.resume(each.name, each.uid, each.pid)
            self._requests.resume(KeptSatellite.resumed(self._loop, each, containment))
        self._troubles.extend(() if state is None else state.troubles)

    def run(self) -> None:
        """Serve until stopped."""
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), self._accept)
        self._loop.later(FILE_LOOK_S, self._look_at_file)
        self._watch_signals()
        if self._options.outlive_s is not None:
            self._end_if_vacant_after(max(FIRST_DAEMON_S, self._options.outlive_s if self._requests.satellites else 0))
        while not self._ended:
            self._loop.run_once()
        for connection in list(self._connections):
            connection.close()
        self._isolator.close()
        if self._users is not None:
            self._users.close()
        self._loop.close()

    def stop(self) -> None:
        """Begin to end: SIGTERM to all, SIGKILL to each after its grace. Does nothing the second time."""
        if self._stopping:
            return
        self._stopping = True
        longest_ms = 0
        for satellite in self._requests.satellites:
            longest_ms = max(longest_ms, satellite.grace_ms)
            with contextlib.suppress(OSError):
                satellite.end()
            self._loop.later(satellite.grace_ms / 1000, lambda satellite=satellite: self._kill(satellite))  # type: ignore[misc]
        self._loop.later(longest_ms / 1000 + END_EXTRA_S, self._give_up)
        self._end_when_empty()

    def renew(self, told: Told) -> None:
        """Become the program that is installed now."""
        if self._stopping:
            told("the keeper is being stopped")
        else:
            self._renewal.begin(told)

    def _not_renewed(self, words: str) -> None:
        """The daemon was told that the connection would end."""
        for connection in list(self._connections):
            connection.close()
        self.trouble(words)

    def _state(self) -> KeeperState | None:
        """What the next program of this process needs; None at a moment at which something is being started or removed."""
        if not self._requests.is_idle or self._stopping:
            return None
        folder, lock_fd = self._isolator.lock or (None, None)
        return KeeperState(
            self._listener.fileno(),
            self._isolator.isolation.name,
            self._isolator.detail,
            folder,
            lock_fd,
            None if self._users is None else self._users.lock_fd,
            tuple(self._troubles),
            tuple(satellite.state() for satellite in self._requests.satellites),
        )

    def trouble(self, words: str) -> None:
        """Tell the daemon, or the next one, and the log."""
        print(words, file=sys.stderr, flush=True)
        self._troubles.append(words[:WORDS_BYTES])
        self._tell_troubles()

    def _kill(self, satellite: KeptSatellite) -> None:
        if satellite in self._requests.satellites:
            satellite.containment.kill()

    def _end_when_empty(self) -> None:
        with contextlib.suppress(OSError):
            for satellite in self._requests.satellites:
                if satellite.status is not None:
                    satellite.containment.kill()  # what the leader has left
            self._requests.release_dead()
        if self._requests.satellites:
            self._loop.later(END_POLL_S, self._end_when_empty)
        else:
            self._ended = True

    def _give_up(self) -> None:
        names = " ".join(satellite.name for satellite in self._requests.satellites)
        print(f"these satellites do not die: {names}", file=sys.stderr, flush=True)
        self._ended = True

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self.trouble(f"the keeper cannot accept: {error.strerror}")
            self._loop.forget(self._listener.fileno())
            self._loop.later(ACCEPT_PAUSE_S, lambda: self._loop.watch(self._listener.fileno(), self._accept))
            return
        connection = DaemonConnection(self._loop, sock, self._serve, self._gone)
        if not connection.peer.is_trusted:
            connection.close()
            return
        self._connections.append(connection)
        self._loop.later(HELLO_DEADLINE_S, lambda: None if connection is self._seat else connection.close())
        if len(self._connections) >= CONNECTIONS:
            self._loop.forget(self._listener.fileno())

    def _look_at_file(self) -> None:
        """Make the socket again if its file was removed: by it the next daemon finds its satellites."""
        self._loop.later(FILE_LOOK_S, self._look_at_file)
        path = self._options.socket
        if os.path.lexists(path) or self._stopping:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = listen(path)
        except OSError as error:
            if not self._is_lost:
                self.trouble(f"the keeper's socket was removed, and cannot be made again: {error.strerror or error}")
            self._is_lost = True
            return
        self._is_lost = False
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        self._listener = found
        self._listener.setblocking(False)
        if len(self._connections) < CONNECTIONS:
            self._loop.watch(self._listener.fileno(), self._accept)
        self.trouble(f"the keeper's socket was removed, and made again: {path}")

    def _gone(self, connection: DaemonConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._loop.watch(self._listener.fileno(), self._accept)
        if connection is self._seat:
            self._seat = None
            if self._options.outlive_s is not None:
                self._end_if_vacant_after(self._options.outlive_s if self._requests.satellites else 0.0)

    def _end_if_vacant_after(self, delay_s: float) -> None:
        self._vacant_round += 1
        vacant_round = self._vacant_round

        def check() -> None:
            if self._seat is None and vacant_round == self._vacant_round:
                self.stop()

        self._loop.later(delay_s, check)

    def _serve(self, connection: DaemonConnection, message: Message) -> None:
        if message.kind == Kind.HELLO:
            self._hello(connection, message)
        elif connection is not self._seat:
            raise Malformed("HELLO comes first")
        elif message.kind == Kind.STOP:
            connection.send(Kind.DONE, message.number)
            self.stop()
        elif message.kind == Kind.RENEW:
            self.renew(functools.partial(_answer_renewal, connection, message.number))
        elif message.kind == Kind.SPAWN and self._stopping:
            refuse(connection, message.number, errno.ESHUTDOWN, "the keeper is being stopped")
        else:
            self._requests.serve(connection, message)

    def _hello(self, connection: DaemonConnection, message: Message) -> None:
        if self._seat is not None and self._seat is not connection:
            self._seat.drain()
        if self._seat is not None and self._seat is not connection:
            words = f"process {self._seat.peer.pid} has the keeper's seat: stop that daemon first"
            refuse(connection, message.number, errno.EBUSY, words)
            return
        oldest, newest = message.value(Tag.OLDEST) or 0, message.value(Tag.NEWEST) or 0
        version = common_version(oldest, newest)
        if version is None:
            words = f"the keeper speaks versions {OLDEST_VERSION} to {VERSION}, the daemon {oldest} to {newest}"
            refuse(connection, message.number, errno.EPROTO, words)
            return
        self._seat = connection
        uids = "" if self._options.uids is None else str(self._options.uids)
        connection.send(
            Kind.DONE,
            message.number,
            [
                (Tag.VERSION, version),
                (Tag.PID, os.getpid()),
                (Tag.BUILD, self._build),
                (Tag.ISOLATION, self._isolator.isolation.value),
                (Tag.DETAIL, self._isolator.detail[:WORDS_BYTES]),
                (Tag.UIDS, uids),
                (Tag.PROBLEM, self._why[:WORDS_BYTES]),
            ],
        )
        self._tell_troubles()

    def _tell_exit(self, satellite: KeptSatellite) -> None:
        if self._seat is not None and satellite.status is not None:
            self._seat.send(
                Kind.EXITED,
                0,
                [(Tag.NAME, satellite.name), (Tag.BIRTH, satellite.birth), (Tag.STATUS, satellite.status)],
            )

    def _tell_troubles(self) -> None:
        while self._seat is not None and self._troubles:
            self._seat.send(Kind.TROUBLE, 0, [(Tag.WORDS, self._troubles.popleft())])

    def _watch_signals(self) -> None:
        receiver, sender = socket.socketpair()
        for each in (receiver, sender):
            each.setblocking(False)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in HELD:
            signal.signal(number, lambda *_: None)  # it is the byte in the socket that counts, read in its turn
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)  # an earlier program of this process has held them back
        self._signal_sockets = receiver, sender

        def told(_: int) -> None:
            numbers = receiver.recv(SIGNAL_BYTES)
            if set(numbers) - {signal.SIGHUP}:
                self.stop()
            else:
                self.renew(lambda words: self.trouble(f"not renewed: {words}") if words else None)

        self._loop.watch(receiver.fileno(), told)


def _answer_renewal(connection: DaemonConnection, number: int, words: str) -> None:
    if words:
        refuse(connection, number, errno.EPROTO, words)
    else:
        connection.send(Kind.DONE, number)


def _open_users(options: Options, lock_fd: int | None) -> tuple[Users | None, str]:
    """The private folders; or None, and why there are none."""
    if options.uids is None:
        return None, "no range of users is configured"
    try:
        return Users(options.directory, options.uids, lock_fd), ""
    except OSError as error:
        return None, f"users {options.uids}, folder {options.directory}: {error.strerror or error}"


def listen(path: Path) -> socket.socket:
    """Listen at `path` for this user and root. Replaces the socket of a dead keeper. Raises OSError."""
    try:
        return listen_private(path, socket.SOCK_SEQPACKET, BACKLOG, "keeper")
    except OSError as exc:
        raise OSError(exc.errno, f"{path}: {exc.strerror}") from exc


def run_keeper(options: Options, state: KeeperState | None = None) -> None:
    """Run the keeper until it is stopped, with `state` as the next program of a keeper's process.

    Raises OSError if it cannot start.
    """
    drop_capabilities()
    listener = listen(options.socket) if state is None else socket.socket(fileno=state.listener_fd)
    try:
        program = KeeperProgram(options, listener, state)
        gc.collect()
        gc.freeze()  # a fork then copies fewer pages
        _say_ready(options, is_renewed=state is not None)
        program.run()
    finally:
        with contextlib.suppress(FileNotFoundError):
            options.socket.unlink()
        listener.close()


def _say_ready(options: Options, *, is_renewed: bool) -> None:
    """Tell the daemon that has started us, or systemd."""
    if options.is_detached and not is_renewed:
        os.write(sys.stdout.fileno(), READY)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(nothing, fd)
        os.close(nothing)
    target = os.environ.get("NOTIFY_SOCKET")
    if target:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
            notify.sendto(b"READY=1", "\0" + target[1:] if target.startswith("@") else target)
