"""The daemon's SETTINGS: what they announce, and how the satellite's first frame must then be changed. Sans-IO.

If a client waits for SETTINGS, it gets ours before its satellite is known. The satellite's own SETTINGS come later, as the
client's second. A value stays in force until it is changed (RFC 9113 §6.5). So the satellite's first frame is passed on with
two changes, and from then on the client has the satellite's values:

- SETTINGS_NO_RFC7540_PRIORITIES (RFC 9218 §2.1) is removed, whatever its value. It may not change after the first SETTINGS,
  in which its absence counts as 0, and clients end the connection if it does. Without it a client may go on sending
  priorities of RFC 7540, which a server with the value 1 ignores.
- A parameter that ours announced and the satellite leaves out is added with its initial value.
"""

import dataclasses
from typing import Self

from bentpipe.proto import limits
from bentpipe.proto.frames import ACK, HEADER_BYTES, FrameType, frame, parse_header
from bentpipe.proto.payloads import INITIAL_WINDOW, INITIAL_WINDOW_SIZE, SETTING_BYTES

MAX_CONCURRENT_STREAMS, NO_RFC7540_PRIORITIES = 3, 9

UNLIMITED_STREAMS = (1 << 31) - 1
"""MAX_CONCURRENT_STREAMS has no limit initially, and no value means that. No connection has so many streams (RFC 9113
§5.1.1)."""

Entries = tuple[tuple[int, int], ...]


class NoServer(Exception):
    """The satellite's first frame is not SETTINGS; `str()` says what it is instead."""

    def __init__(self, first: bytes | bytearray) -> None:
        super().__init__(f"it begins with {bytes(first)!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class Announcement:
    """The values of a server's SETTINGS that limit a client's requests: calls at once, and bytes of each."""

    streams: int = UNLIMITED_STREAMS
    window_bytes: int = INITIAL_WINDOW

    @classmethod
    def of(cls, entries: Entries) -> Self:
        """Read them out of SETTINGS, of which the last of a kind counts (RFC 9113 §6.5.3)."""
        last = dict(entries)
        return cls(last.get(MAX_CONCURRENT_STREAMS, cls().streams), last.get(INITIAL_WINDOW_SIZE, cls().window_bytes))

    def entries(self) -> Entries:
        """Make a SETTINGS frame. Parameters with their initial value are left out."""
        values = {MAX_CONCURRENT_STREAMS: self.streams, INITIAL_WINDOW_SIZE: self.window_bytes}
        return tuple((setting, value) for setting, value in values.items() if value != INITIAL_VALUES[setting])

    def frame(self) -> bytes:
        """As a frame."""
        return frame(FrameType.SETTINGS, 0, 0, _payload(self.entries()))


INITIAL_VALUES = {MAX_CONCURRENT_STREAMS: UNLIMITED_STREAMS, INITIAL_WINDOW_SIZE: INITIAL_WINDOW}
"""RFC 9113 §6.5.2."""


class FirstSettings:
    """Reads a satellite's bytes to the end of its first frame, which is held back until then."""

    def __init__(self, announced: Announcement) -> None:
        self._announced = announced
        self._kept = bytearray()
        self.heard: Announcement | None = None
        """The values of the satellite's SETTINGS, once they are complete."""

    def receive_data(self, data: bytes) -> bytes:
        """Return the bytes for the client: none until the frame is complete. Raises NoServer."""
        if self.heard is not None:
            return data
        self._kept += data
        if len(self._kept) < HEADER_BYTES:
            if not self._may_be_settings():
                raise NoServer(self._kept)
            return b""
        header = parse_header(self._kept)
        if (
            header.type != FrameType.SETTINGS
            or header.flags & ACK
            or header.stream_id
            or header.length % SETTING_BYTES
            or header.length > limits.FRAME_BYTES
        ):
            raise NoServer(self._kept[:HEADER_BYTES])
        size = HEADER_BYTES + header.length
        if len(self._kept) < size:
            return b""
        entries = _entries(self._kept[HEADER_BYTES:size])
        rest = bytes(self._kept[size:])
        self._kept.clear()
        self.heard = Announcement.of(entries)
        return frame(FrameType.SETTINGS, header.flags, 0, _payload(self._changed(entries))) + rest

    def _may_be_settings(self) -> bool:
        """Notice early that this is not an HTTP/2 server:

        a banner may be shorter than a frame's header, and nothing follows.
        """
        return len(self._kept) < 4 or self._kept[3] == FrameType.SETTINGS

    def _changed(self, entries: Entries) -> Entries:
        kept = tuple(entry for entry in entries if entry[0] != NO_RFC7540_PRIORITIES)
        said = {setting for setting, _ in kept}
        added = tuple(
            (setting, INITIAL_VALUES[setting]) for setting, _ in self._announced.entries() if setting not in said
        )
        return kept + added


def _entries(payload: bytes | bytearray) -> Entries:
    return tuple(
        (int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + SETTING_BYTES]))
        for at in range(0, len(payload), SETTING_BYTES)
    )


def _payload(entries: Entries) -> bytes:
    return b"".join(setting.to_bytes(2) + value.to_bytes(4) for setting, value in entries)
