"""Upgrading the data plane: the new one takes the listening sockets of the old one, which then drains.

The sockets are shared, not opened again: a listening socket that is closed resets the clients in its queue, and a shared
one keeps them until both processes have closed it. The order is: the new data plane has read its keys and listens for
control planes; it gets the sockets; it accepts; only then it says that it has taken them, and the old one lets go of its
copies. If the new one dies before that, nothing has happened. Descriptors go over a socket of their own, since what a
control plane sends may never carry any.
"""

import array
import contextlib
import logging
import os
import socket
import stat
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from bentpipe.config.model import ListenerSection
from bentpipe.daemon.dataplane.plane_socket import PlaneSocket
from bentpipe.daemon.planes.bounds import MESSAGE_BYTES, NAME_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken, decode_message, encode_record
from bentpipe.daemon.planes.records import LINK_ID, ListenersRecord
from bentpipe.daemon.planes.sockets import (
    check_peer,
    connect_private,
    make_private_folder,
    plane_socket_path,
    plane_sockets,
)
from bentpipe.daemon.planes.table import MAGIC, MESSAGE_HEADER, Plane

log = logging.getLogger("bentpipe.dataplane")

FOLDER_NAME = "handover"
ANSWER_S = 10.0
"""For the old data plane's sockets. It is asked before anything is served, so this may block."""
TAKEN_S = 60.0
"""From the sockets to the word that they are taken. A new data plane that needs longer has hung; the old one goes on."""
FDS_A_MESSAGE = 32
MOST_MESSAGES = 64
TAKEN = "taken"


def name_of(section: ListenerSection) -> str:
    """By this name both data planes know a listener's sockets."""
    if section.address is None:
        return f"systemd {section.systemd}"[:NAME_BYTES]
    host, port = section.address
    return f"{host}:{port}"[:NAME_BYTES]


def place_number(section: ListenerSection) -> int:
    """Stands for the place where a listener listens, as the configuration has it: a number that COUNTERS can carry."""
    return zlib.crc32(name_of(section).encode())


def _message(left: int, names: Sequence[str]) -> bytes:
    return MESSAGE_HEADER.pack(MAGIC, 0) + encode_record(ListenersRecord(LINK_ID, left, "\n".join(names)))


def _read(message: bytes) -> ListenersRecord:
    """Raises ProtocolBroken."""
    _, records = decode_message(message, Plane.DATA)
    if len(records) != 1 or not isinstance(records[0], ListenersRecord):
        raise ProtocolBroken("expected one LISTENERS record")
    return records[0]


class TakenListeners:
    """What the old data plane has given: close it, or say that it is taken."""

    def __init__(self, link: socket.socket | None, sockets: Mapping[str, list[socket.socket]]) -> None:
        self._link = link
        self.sockets = sockets
        """By name."""

    def confirm(self) -> None:
        """Say that this process accepts on them. The old data plane then lets go of its copies."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.send(_message(0, [TAKEN]))
            self._link.close()
            self._link = None

    def close_unused(self, used: Sequence[socket.socket]) -> None:
        """Close those that no listener of the configuration uses."""
        for sockets in self.sockets.values():
            for sock in sockets:
                if sock not in used:
                    sock.close()

    def give_up(self) -> None:
        """The old data plane goes on."""
        if self._link is not None:
            self._link.close()
        self.close_unused(())


def take_listeners(folder: Path) -> TakenListeners:
    """Ask the data plane that accepts now for its listening sockets; none if none runs. Blocks for ANSWER_S at most."""
    for path in plane_sockets(folder / FOLDER_NAME):
        try:
            link = connect_private(path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # its process has died
            continue
        except OSError:
            continue
        found: dict[str, list[socket.socket]] = {}
        try:
            link.settimeout(ANSWER_S)
            _take_from(link, found)
        except (OSError, ProtocolBroken) as exc:
            log.warning("no sockets of the old data plane", extra={"fields": {"socket": str(path), "error": str(exc)}})
            TakenListeners(link, found).give_up()
            continue
        return TakenListeners(link, found)
    return TakenListeners(None, {})


def _take_from(link: socket.socket, found: dict[str, list[socket.socket]]) -> None:
    for _ in range(MOST_MESSAGES):
        message, ancillary, flags, _ = link.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(4 * FDS_A_MESSAGE))
        fds = _descriptors_of(ancillary)
        sockets = [socket.socket(fileno=fd) for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode)]
        if not message:
            raise ProtocolBroken("it has closed the connection")
        record = _read(message)
        names = record.names.split("\n") if record.names else []
        if flags & socket.MSG_CTRUNC or len(sockets) != len(names) or len(sockets) != len(fds):
            for sock in sockets:
                sock.close()
            raise ProtocolBroken("not every descriptor has come: is the limit of this process too low?")
        for name, sock in zip(names, sockets, strict=True):
            found.setdefault(name, []).append(sock)
        if not record.left:
            return
    raise ProtocolBroken("too many messages")


def _descriptors_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


class HandoverServer:
    """Gives this process's listening sockets to a newer data plane that asks."""

    def __init__(self, folder: Path, plane: str, sockets: Sequence[tuple[str, socket.socket]]) -> None:
        """Raises OSError."""
        make_private_folder(folder / FOLDER_NAME)
        self._sockets = sockets
        self._sock = PlaneSocket(plane_socket_path(folder / FOLDER_NAME, plane))

    async def run_handover(self) -> None:
        """Return once a newer data plane has taken the sockets."""
        while True:
            try:
                link = await self._sock.accept()
            except OSError:
                continue
            with link:
                try:
                    check_peer(link)
                    link.setblocking(False)
                    with trio.move_on_after(TAKEN_S):
                        if await self._give(link):
                            return
                except (OSError, ProtocolBroken) as exc:
                    fields = {"error": str(exc)}
                    log.warning("the listening sockets were not taken", extra={"fields": fields})

    async def _give(self, link: socket.socket) -> bool:
        groups = [self._sockets[at : at + FDS_A_MESSAGE] for at in range(0, len(self._sockets), FDS_A_MESSAGE)] or [()]
        for number, group in enumerate(groups):
            message = _message(len(groups) - 1 - number, [name for name, _ in group])
            fds = array.array("i", [sock.fileno() for _, sock in group])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if group else []
            while True:
                try:
                    link.sendmsg([message], ancillary)
                    break
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(link)
        await trio.lowlevel.wait_readable(link)
        answer = link.recv(MESSAGE_BYTES)
        return bool(answer) and _read(answer).names == TAKEN

    def close(self) -> None:
        """No data plane may ask any more. Idempotent."""
        self._sock.close()
