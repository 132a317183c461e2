"""The binding of the reading of a satellite's first frame in C. include/bp.h says what it does."""

import dataclasses
import enum
from typing import Protocol, cast

from bentpipe.native.lib import ffi, lib

ADDED_BYTES = 12
"""BP_SETTINGS_ADDED_BYTES."""


class SettingsVerdict(enum.IntEnum):
    """enum bp_first_settings."""

    MORE = 0
    WHOLE = 1
    NO_SERVER = 2


class NotSettings(Exception):
    """The first frame is not SETTINGS of an HTTP/2 server."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerSettings:
    """The satellite's SETTINGS, which limit a client's requests, and what the client gets of it."""

    words: bytes
    """The frame, changed for the client, and what the satellite sent behind it."""
    streams: int
    window_bytes: int


class _CAnnouncement(Protocol):
    streams: int
    window_bytes: int


class FirstSettingsReader:
    """Reads a satellite's bytes to the end of its first frame."""

    def __init__(self, streams: int, window_bytes: int) -> None:
        """What our own SETTINGS have announced to the client."""
        self._announced = ffi.new("struct bp_announcement *", {"streams": streams, "window_bytes": window_bytes})
        self._said = bytearray()

    def receive_data(self, data: bytes) -> ServerSettings | None:
        """Read on. Returns None until the frame is whole, and then the settings, once. Raises NotSettings."""
        self._said += data
        most = len(self._said) + ADDED_BYTES
        words, size, heard = ffi.new("char[]", most), ffi.new("size_t *"), ffi.new("struct bp_announcement *")
        said = ffi.from_buffer(self._said)
        verdict = lib.bp_first_settings_read(self._announced, said, len(self._said), words, size, heard)
        if verdict == SettingsVerdict.NO_SERVER:
            raise NotSettings
        if verdict == SettingsVerdict.MORE:
            return None
        [size_bytes], c = ffi.unpack(size, 1), cast(_CAnnouncement, heard)
        return ServerSettings(bytes(ffi.buffer(words, size_bytes)), c.streams, c.window_bytes)
