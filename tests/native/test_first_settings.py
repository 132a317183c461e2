"""The reading of a satellite's first frame in C says what proto/first_settings.py says, however the bytes are cut.

Each limit and one past it, every cut, what is not a server, and random frames; in this process and under ASan and UBSan.
"""

import functools
import os
import random
from collections.abc import Iterator

import pytest

from beds.fuzz.asker import Asker, asker
from beds.fuzz.first_frames import (
    MOST_ENTRIES,
    FirstFrame,
    MakeReader,
    Reader,
    SanitizedReader,
    compare,
    in_process,
    random_first_frame,
)
from bentpipe.native import first_settings
from bentpipe.native.first_settings import NotSettings, ServerSettings
from bentpipe.proto.first_settings import UNLIMITED_STREAMS, Announcement
from bentpipe.proto.frames import ACK, FrameType, frame
from bentpipe.proto.payloads import INITIAL_WINDOW

FRAMES = 5 * int(os.environ.get("BENTPIPE_OPENINGS", "600"))
SEED = int(os.environ.get("BENTPIPE_SEED", "0")) or random.randrange(1, 1 << 30)
OURS = Announcement(100, 0)
ENTRY = b"\0\3\0\0\0\7"


@pytest.fixture(scope="module")
def process() -> Iterator[Asker]:
    with asker() as made:
        yield made


@pytest.fixture(params=["in process", "sanitized"])
def make(request: pytest.FixtureRequest, process: Asker) -> MakeReader:
    return in_process if request.param == "in process" else functools.partial(SanitizedReader, process)


def settings(payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return frame(FrameType.SETTINGS, flags, stream, payload)


WHOLE = (
    settings(),
    settings(ENTRY) + b"what follows",
    settings(b"\0\x09\0\0\0\1" + ENTRY + b"\0\x09\0\0\0\0"),
    settings(ENTRY + b"\0\3\0\0\0\x09\0\4\0\0\0\1\0\4\xff\xff\xff\xff"),
    settings(ENTRY, flags=0xFE),
    settings(ENTRY, stream=1 << 31),
    settings(b"\x09\0\0\0\0\1\3\0\0\0\0\1"),
    settings(ENTRY * MOST_ENTRIES) + b"x",
    settings(b"\0\2\0\0\0\1" * MOST_ENTRIES),
)


@pytest.mark.parametrize("said", WHOLE, ids=range(len(WHOLE)))
@pytest.mark.parametrize("announced", [Announcement(), OURS, Announcement(1, INITIAL_WINDOW)], ids=str)
def test_what_is_whole(said: bytes, announced: Announcement, make: MakeReader) -> None:
    assert compare(FirstFrame(announced, (said,)), make)
    places = range(len(said) + 1) if len(said) < 100 else (0, 1, 8, 9, 10, len(said) - 2, len(said) - 1, len(said))
    for cut in places:
        assert compare(FirstFrame(announced, (said[:cut], said[cut:])), make), cut
    if len(said) < 100:
        assert compare(FirstFrame(announced, tuple(said[at : at + 1] for at in range(len(said)))), make)


NO_SERVERS = (
    frame(FrameType.PING, 0, 0, bytes(8)),
    frame(FrameType.GOAWAY, 0, 0, bytes(8)),
    settings(flags=ACK),
    settings(stream=1),
    settings(bytes(5)),
    settings(bytes(7)),
    (6 * (MOST_ENTRIES + 1)).to_bytes(3) + b"\4\0\0\0\0\0",
    b"\xff\xff\xff\4\0\0\0\0\0",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"220 mail\r\n",
    b"SSH-",
)


@pytest.mark.parametrize("said", NO_SERVERS, ids=range(len(NO_SERVERS)))
def test_what_is_not_a_server(said: bytes, make: MakeReader) -> None:
    for size in (1, 4, 1 << 20):
        parts = tuple(said[at : at + size] for at in range(0, len(said), size))
        assert compare(FirstFrame(OURS, parts), make) is None
        reader = make(OURS)
        with pytest.raises(NotSettings):
            assert [reader.receive_data(part) for part in parts] == []


@pytest.mark.parametrize("said", [b"", b"\0", settings(ENTRY)[:-1], settings(ENTRY * MOST_ENTRIES)[:-1]], ids=len)
def test_what_is_not_whole_yet(said: bytes, make: MakeReader) -> None:
    assert compare(FirstFrame(OURS, (said,)), make) is None
    assert make(OURS).receive_data(said) is None


def test_random_frames(process: Asker) -> None:
    whole = 0
    for seed in range(SEED, SEED + FRAMES):
        case = random_first_frame(seed)
        try:
            whole += compare(case) is not None
            if seed % 3 == 0:
                compare(case, functools.partial(SanitizedReader, process))
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
    print(f"\nfrom seed {SEED}: {whole} of {FRAMES} are whole")
    assert FRAMES // 5 < whole < FRAMES * 4 // 5, "the frames are not what they should be"


def test_a_difference_is_found() -> None:
    """The comparison itself: a reader that says too much, too little or something else is told from the oracle."""

    class Broken:
        def __init__(self, said: ServerSettings | None) -> None:
            self._said = said

        def receive_data(self, data: bytes, /) -> ServerSettings | None:
            if self._said is None:
                raise NotSettings
            return self._said

    def broken(said: ServerSettings | None) -> MakeReader:
        def make(announced: Announcement) -> Reader:
            return Broken(said)

        return make

    words = settings(ENTRY)
    for said in (
        None,
        ServerSettings(words, 8, INITIAL_WINDOW),
        ServerSettings(words, 7, 0),
        ServerSettings(words + b"x", 7, INITIAL_WINDOW),
    ):
        with pytest.raises(AssertionError, match="C "):
            compare(FirstFrame(Announcement(), (words,)), broken(said))
    with pytest.raises(AssertionError, match="C does not see"):
        compare(FirstFrame(OURS, (b"SSH-2.0-x\r\n",)), broken(ServerSettings(b"", UNLIMITED_STREAMS, INITIAL_WINDOW)))


def test_the_bounds_are_those_of_proto() -> None:
    most = settings(b"\0\2\0\0\0\1" * MOST_ENTRIES)
    read = in_process(OURS).receive_data(most)
    assert read is not None
    assert len(read.words) == len(most) + first_settings.ADDED_BYTES
