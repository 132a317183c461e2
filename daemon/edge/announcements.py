"""What our SETTINGS announce to a client that needs them before its satellite is known: no more than the satellite allows.

Owns: what each satellite's SETTINGS said when we last read them, in memory. The client later gets the satellite's own
frame, changed by proto/first_settings.py, and with it the true values, which may be higher or lower.

- A client that names its satellite by TLS server name hears what this satellite has said.
- Any other client may want any satellite. It hears the least that any satellite has said, or LEAST if none has said
  anything since the start.
- A satellite that has said nothing yet is taken to be like the others, since a fleet mostly runs one kind of server. If it
  allows less, it refuses some first calls once, as it would for a client that did not wait for its SETTINGS (RFC 9113
  §5.1.2, §6.9.3).
"""

from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.payloads import INITIAL_WINDOW

STREAMS = 100
"""Streams that we announce at most: the least that RFC 9113 §6.5.2 recommends, and what many servers allow. The client opens
more once its satellite has allowed them; before that we would have to keep them."""

LEAST = Announcement(streams=1, window_bytes=0)
"""The client can send its request and nothing else. With 0 streams it could never say which satellite it wants."""

MOST = Announcement(STREAMS, INITIAL_WINDOW)
"""Once satellites are known, a window below the initial one has no use: the first message would wait for a round trip."""


class Announcements:
    """Remembers what satellites said, and says what to announce. It has one entry a satellite."""

    def __init__(self) -> None:
        self._heard: dict[SatelliteKey, Announcement] = {}
        self._least = LEAST

    def hear(self, key: SatelliteKey, heard: Announcement) -> None:
        """Remember what a satellite's SETTINGS say now."""
        heard = _bounded(heard)
        if self._heard.get(key) == heard:
            return
        self._heard[key] = heard
        self._least = Announcement(
            min(each.streams for each in self._heard.values()), min(each.window_bytes for each in self._heard.values())
        )

    def announce(self, key: SatelliteKey | None) -> Announcement:
        """Say what to announce to a client of this satellite; None if its satellite is not known yet."""
        return self._least if key is None else self._heard.get(key, self._least)


def _bounded(heard: Announcement) -> Announcement:
    return Announcement(
        max(LEAST.streams, min(heard.streams, MOST.streams)), min(heard.window_bytes, MOST.window_bytes)
    )
