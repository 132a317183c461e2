"""What the daemon and the keeper say to each other: one message in each packet of a SOCK_SEQPACKET socket. Pure.

A message is a header (kind, flags that are 0, number) and fields (tag, length, value), all in network byte order. A request
has a number above 0, and its answer, DONE or REFUSED, has the same. The number of an event is 0.

`Kind` is the table of messages: each one's fields, its answer, and its bound. Fields with dots may occur several times.

A satellite is NAME, BIRTH (never the same for two runs), PID, UID (if its user is its own), CGROUP (its folder, if any),
FOLDER (private, if any), NOTE, GRACE_MS, FLAGS, STATUS (if it has ended).

Versions: a side ignores a field that it does not know, and the keeper answers ENOSYS to a kind that it does not know. So an
older keeper and a newer daemon understand each other. Only a change of meaning takes a new version; a keeper that runs keeps
the version with which it was started, so a daemon speaks OLDEST_VERSION too.
"""

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

VERSION = 1
OLDEST_VERSION = 1

MESSAGE_BYTES = 128 << 10
"""The longest message: arguments and environment of a satellite fit. Linux takes 208 KiB (net.core.wmem_default)."""
NAME_BYTES = 255
"""A name is a folder's name."""
NAME_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~%:")
"""Neither slash nor NUL: a name is a part of paths."""
NOTE_BYTES = 4096
WORDS_BYTES = 1000
OUTPUT_BYTES = 32 << 10
"""The most output in one answer."""
MOST_SATELLITES = 4096
MOST_TROUBLES = 32
HELLO_DEADLINE_S = 5.0

HEADER = struct.Struct("!HHI")
FIELD = struct.Struct("!HI")
NUMBER = struct.Struct("!Q")


class Kind(enum.IntEnum):
    """Kinds of messages; the numbers are the wire's. First the daemon's requests, then answers, then the keeper's events."""

    HELLO = 1
    """OLDEST, NEWEST (versions that the daemon speaks), PROGRAM. Comes first, within HELLO_DEADLINE_S, and takes the seat.
    DONE: VERSION, PID, BUILD, ISOLATION, DETAIL, UIDS (if users are configured), PROBLEM (why there are none).
    REFUSED: EBUSY while another daemon has the seat, EPROTO if no version fits."""
    NEXT = 2
    """NAME (the last one seen), or none. DONE: the satellite that follows by name; no field after the last one."""
    SPAWN = 3
    """NAME, ARGUMENT…, ENVIRONMENT…, FOLDER, NOTE, GRACE_MS, SOFT_FILES, OWN_USER. DONE: the satellite.
    REFUSED: the errno of the step that failed; EAGAIN beyond MOST_SATELLITES."""
    END = 4
    """NAME. SIGTERM to its process group, then a thaw."""
    FREEZE = 5
    """NAME. It is begun; LOOK says when it is done."""
    THAW = 6
    """NAME."""
    KILL = 7
    """NAME. SIGKILL to all of its processes. It may have to be repeated until LOOK says EMPTY."""
    LOOK = 8
    """NAME. DONE: the satellite."""
    READ = 9
    """NAME; OFFSET (of the first byte that is new to the daemon); WAIT (answer only when there is one).
    DONE: OFFSET, OUTPUT. Without OFFSET: the last bytes. One READ waits for each satellite; a second one ends the first."""
    RELEASE = 10
    """NAME. DONE: STATUS, and the keeper forgets it. REFUSED: EBUSY while a process of it lives."""
    REMOVE = 11
    """NAME. Answered when its private folder is deleted and its user is free. REFUSED: EBUSY while it runs."""
    STOP = 12
    """All satellites get SIGTERM, and SIGKILL after their grace; then the keeper ends."""
    RENEW = 13
    """Become the program that is installed now, with all satellites. DONE: the connection ends, and can be made again.
    REFUSED: EBUSY, EPROTO, with the reason; the keeper goes on as it is."""
    DONE = 64
    """The request is carried out."""
    REFUSED = 65
    """ERRNO, WORDS. Nothing has changed."""
    EXITED = 96
    """NAME, BIRTH, STATUS: its first process has ended. NEXT tells it again."""
    TROUBLE = 97
    """WORDS for the log; MOST_TROUBLES of them wait for a daemon."""


class Tag(enum.IntEnum):
    """Fields; the numbers are the wire's."""

    OLDEST = 1
    NEWEST = 2
    PROGRAM = 3
    VERSION = 4
    PID = 5
    ISOLATION = 6
    DETAIL = 7
    UIDS = 8
    PROBLEM = 9
    NAME = 10
    ARGUMENT = 11
    ENVIRONMENT = 12
    FOLDER = 13
    NOTE = 14
    GRACE_MS = 15
    SOFT_FILES = 16
    OWN_USER = 17
    BIRTH = 18
    UID = 19
    CGROUP = 20
    FLAGS = 21
    STATUS = 22
    """The exit status, or 256 and the number of the signal."""
    OFFSET = 23
    WAIT = 24
    OUTPUT = 25
    ERRNO = 26
    WORDS = 27
    BUILD = 28
    """Differs if the keeper's code does."""


class Flag(enum.IntFlag):
    """What the keeper knows of a satellite's processes."""

    ENDING = 1
    """It has been asked to end."""
    FREEZING = 2
    """It has been asked to freeze, and not to thaw."""
    FROZEN = 4
    EMPTY = 8
    """No process of it lives."""
    EXITED = 16
    """Its first process has ended."""


class Malformed(ValueError):
    """The packet is not a message."""


class Message(NamedTuple):
    """A message that was received. The fields are in the packet's order."""

    kind: int
    number: int
    fields: tuple[tuple[int, bytes], ...]

    def get(self, tag: Tag) -> bytes | None:
        """The first field of this tag."""
        return next((value for each, value in self.fields if each == tag), None)

    def all(self, tag: Tag) -> tuple[bytes, ...]:
        """All fields of this tag, in order."""
        return tuple(value for each, value in self.fields if each == tag)

    def value(self, tag: Tag) -> int | None:
        """A field that is a number. Raises Malformed."""
        data = self.get(tag)
        if data is None:
            return None
        if len(data) != NUMBER.size:
            raise Malformed(f"{tag.name} has {len(data)} bytes instead of {NUMBER.size}")
        return int(NUMBER.unpack(data)[0])

    def text(self, tag: Tag) -> str:
        """A field that is text; empty if there is none."""
        return (self.get(tag) or b"").decode(errors="replace")

    def name(self) -> str:
        """The satellite. Raises Malformed if that is not a valid name."""
        return checked_name(self.get(Tag.NAME) or b"")


def checked_name(data: bytes) -> str:
    """Return the name. Raises Malformed unless it can be a folder's name."""
    if not data or len(data) > NAME_BYTES or data[:1] == b"." or not NAME_CHARACTERS.issuperset(data):
        raise Malformed(f"{data[:NAME_BYTES]!r} is not the name of a satellite")
    return data.decode("ascii")


Field = tuple[Tag, bytes | str | int]


def encode(kind: Kind, number: int, fields: Iterable[Field] = ()) -> bytes:
    """Make a packet. Raises ValueError if it has over MESSAGE_BYTES."""
    parts = [HEADER.pack(kind, 0, number)]
    for tag, value in fields:
        data = value.encode() if isinstance(value, str) else NUMBER.pack(value) if isinstance(value, int) else value
        parts += FIELD.pack(tag, len(data)), data
    packet = b"".join(parts)
    if len(packet) > MESSAGE_BYTES:
        raise ValueError(f"a message of {len(packet)} bytes; {MESSAGE_BYTES} are the most")
    return packet


def decode(packet: bytes) -> Message:
    """Read a packet. Raises Malformed."""
    if not HEADER.size <= len(packet) <= MESSAGE_BYTES:
        raise Malformed(f"a packet of {len(packet)} bytes")
    kind, _, number = HEADER.unpack_from(packet)
    fields = []
    at = HEADER.size
    while at < len(packet):
        if len(packet) - at < FIELD.size:
            raise Malformed("a field without length")
        tag, length = FIELD.unpack_from(packet, at)
        at += FIELD.size
        if length > len(packet) - at:
            raise Malformed("a field longer than its packet")
        fields.append((tag, packet[at : at + length]))
        at += length
    return Message(kind, number, tuple(fields))


def common_version(oldest: int, newest: int) -> int | None:
    """The newest version that this side and one that speaks `oldest` to `newest` both speak; None if there is none."""
    version = min(VERSION, newest)
    return version if version >= max(OLDEST_VERSION, oldest) else None
