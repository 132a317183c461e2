"""Random first bytes of satellites, honest and hostile, and the reading of them in C beside proto/first_settings.py."""

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import Protocol

from beds.fuzz.asker import Asker
from bentpipe.native.first_settings import FirstSettingsReader, NotSettings, ServerSettings
from bentpipe.proto import limits
from bentpipe.proto.first_settings import UNLIMITED_STREAMS, Announcement, FirstSettings, NoServer
from bentpipe.proto.frames import ACK, FrameType, frame
from bentpipe.proto.payloads import INITIAL_WINDOW, SETTING_BYTES

SETTINGS = (1, 2, 3, 3, 4, 4, 5, 6, 8, 9, 9, 0x9A9A, 0x300, 0x400, 0x900, 0)
VALUES = (0, 1, 100, INITIAL_WINDOW, INITIAL_WINDOW + 1, UNLIMITED_STREAMS, 1 << 31, (1 << 32) - 1)
MOST_ENTRIES = limits.FRAME_BYTES // SETTING_BYTES
BANNERS = (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail\r\n", b"SSH-2.0-x\r\n", b"\x15\x03\x01\x00\x02\x02\x28", b"")
FLAGS = (*(0,) * 8, 0x40, 0xFE, 0xFF, ACK)
STREAMS = (*(0,) * 12, 1 << 31, 1, (1 << 31) + 1)


@dataclasses.dataclass(frozen=True, slots=True)
class FirstFrame:
    """What a satellite says, in parts, to a client that has heard our announcement."""

    announced: Announcement
    parts: tuple[bytes, ...]


class Reader(Protocol):
    """Reads on. Returns the settings once they are whole. Raises NotSettings."""

    def receive_data(self, data: bytes, /) -> ServerSettings | None: ...


MakeReader = Callable[[Announcement], Reader]


def in_process(announced: Announcement) -> Reader:
    """The reader of the binding."""
    return FirstSettingsReader(announced.streams, announced.window_bytes)


class SanitizedReader:
    """A reader in the program under sanitizers."""

    def __init__(self, process: Asker, announced: Announcement) -> None:
        self._process = process
        self._announced = announced
        self._said = b""

    def receive_data(self, data: bytes, /) -> ServerSettings | None:
        """See Reader."""
        self._said += data
        return self._process.read_first_settings(self._announced, self._said)


def random_first_frame(seed: int) -> FirstFrame:
    """One of them, the same one for the same seed."""
    made = random.Random(seed)
    announced = Announcement(made.choice((1, 100, UNLIMITED_STREAMS)), made.choice((0, 4_096, INITIAL_WINDOW)))
    return FirstFrame(announced, _cut(made, _said(made)))


def _said(made: random.Random) -> bytes:
    if made.random() < 0.1:
        return made.choice((*BANNERS, made.randbytes(made.randrange(40))))
    count = made.choice((0, 1, 2, 5, 9, 9, made.randrange(60), MOST_ENTRIES, MOST_ENTRIES + 1))
    payload = b"".join(made.choice(SETTINGS).to_bytes(2) + made.choice(VALUES).to_bytes(4) for _ in range(count))
    payload += bytes(made.choice((0,) * 20 + (1, 5)))
    kind = made.choice((FrameType.SETTINGS,) * 60 + tuple(FrameType))
    said = bytearray(frame(kind, made.choice(FLAGS), made.choice(STREAMS), payload))
    said += made.randbytes(made.choice((0, 0, 1, 30, 3_000)))
    if made.random() < 0.1:
        said[made.randrange(min(len(said), 12))] = made.randrange(256)
    if made.random() < 0.1:
        del said[made.randrange(len(said)) :]
    return bytes(said)


def _cut(made: random.Random, said: bytes) -> tuple[bytes, ...]:
    """Parts of one byte only where the header and the first entries are, so that a long frame does not take long."""
    places = {made.randrange(len(said) + 1) for _ in range(made.choice((0, 0, 1, 3)))}
    if made.random() < 0.3:
        places.update(range(min(len(said), 24)))
    cuts = [0, *sorted(places), len(said)]
    return tuple(said[begin:end] for begin, end in itertools.pairwise(cuts))


def compare(case: FirstFrame, make: MakeReader = in_process) -> ServerSettings | None:
    """Read it by both, part by part. Returns the settings, or None. Raises AssertionError where they differ."""
    oracle, reader = FirstSettings(case.announced), make(case.announced)
    for number, part in enumerate(case.parts):
        words = read = None
        with contextlib.suppress(NoServer):
            words = oracle.receive_data(part)
        try:
            read = reader.receive_data(part)
        except NotSettings:
            assert words is None, f"C says that it is not a server at part {number}: {case}"
            return None
        assert words is not None, f"C does not see that it is not a server at part {number}: {case}"
        heard = oracle.heard
        expected = None if heard is None else ServerSettings(words, heard.streams, heard.window_bytes)
        assert read == expected, f"C reads something else at part {number}: {case}"
        if read is not None:
            return read
    return None
