"""The program that calls pure functions of the engine under ASan and UBSan (tests/native/asker)."""

import contextlib
import itertools
import struct
from collections.abc import Iterator

from beds.driver_build import build_asker
from beds.fuzz.asked import OWN_PATHS, Known, known_of
from beds.fuzz.asked_program import AskedProgram
from beds.fuzz.requests import Asked
from bentpipe.native.first_settings import NotSettings, ServerSettings, SettingsVerdict
from bentpipe.native.lib import check
from bentpipe.native.request import TokenRequest
from bentpipe.native.sock_diag import ListeningSocket
from bentpipe.proto.first_settings import Announcement

NO_TEXT = 0xFFFFFFFF
SATELLITE = struct.Struct("II64s64s")
REQUEST = struct.Struct(f"{SATELLITE.size}s32sIIII")
"""struct bp_satellite and struct bp_request."""
ANNOUNCEMENT = struct.Struct("II")
"""struct bp_announcement."""
FIRST_SETTINGS = struct.Struct("III I")
"""enum bp_first_settings, the struct bp_announcement, and how many words there are."""
LISTENER = struct.Struct("iII")
"""The result, and the struct bp_listener."""


class Asker(AskedProgram):
    """The running program."""

    def __init__(self) -> None:
        super().__init__([bytes(build_asker("address,undefined")), *OWN_PATHS])

    def read(self, asked: Asked) -> Known | None:
        """Read a request. Returns None if it is unusual. Raises AssertionError if the program ends."""
        parts = list(itertools.chain.from_iterable(asked.headers))
        texts = b"".join(_text(each) for each in (asked.server_name, asked.domain))
        sizes = struct.pack(f"{1 + len(parts)}I", len(asked.headers), *map(len, parts))
        text = b"".join(parts)
        self.stdin.write(b"r" + texts + sizes + text)
        known = self.hear(1)
        satellite, digest, *spans = REQUEST.unpack(self.hear(REQUEST.size))
        org_bytes, name_bytes, org, name = SATELLITE.unpack(satellite)
        if known == b"\0":
            return None
        traces = [text[at : at + size] for at, size in zip(spans[::2], spans[1::2], strict=True)]
        return known_of(TokenRequest(org[:org_bytes].decode(), name[:name_bytes].decode(), digest, *traces))

    def read_first_settings(self, announced: Announcement, said: bytes) -> ServerSettings | None:
        """Read all that a satellite has said. Returns None if more is needed. Raises NotSettings, or AssertionError."""
        asked = ANNOUNCEMENT.pack(announced.streams, announced.window_bytes)
        self.stdin.write(b"f" + asked + struct.pack("I", len(said)) + said)
        verdict, streams, window_bytes, size = FIRST_SETTINGS.unpack(self.hear(FIRST_SETTINGS.size))
        words = self.hear(size)
        if verdict == SettingsVerdict.NO_SERVER:
            raise NotSettings
        return ServerSettings(words, streams, window_bytes) if verdict == SettingsVerdict.WHOLE else None

    def find_listener(self, address: bytes, port: int) -> ListeningSocket | None:
        """As ListenerLookup.find. Raises OSError, or AssertionError."""
        self.stdin.write(b"l" + struct.pack("I", len(address)) + address + struct.pack("I", port))
        found, inode, uid = LISTENER.unpack(self.hear(LISTENER.size))
        check(found)
        return ListeningSocket(inode, uid) if found else None


def _text(value: str | None) -> bytes:
    data = b"" if value is None else value.encode()
    return struct.pack("I", NO_TEXT if value is None else len(data)) + data


@contextlib.contextmanager
def asker() -> Iterator[Asker]:
    """Start the program. Raises AssertionError unless it ends well."""
    made = Asker()
    yield made
    made.close()
