"""What our SETTINGS announce to a client that must hear some before its satellite is known: no more than a satellite keeps.

Owns: what each satellite's SETTINGS said when we last read them, in memory. The satellite's own frame, changed by
proto/first_settings.py, then says to the client what is so, be it more or less. Where a client asks for its satellite by
TLS server name it is known beforehand; for all others it may be any, so the least that any has said is announced, and as
long as none was heard since the start the least there is. A satellite that was not heard yet is taken to be like those
that were: fleets mostly run one kind of server, and one that allows less refuses some first calls once, as it would to a
client that did not wait for its SETTINGS (RFC 9113 §5.1.2, §6.9.3).
"""

from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.payloads import INITIAL_WINDOW

STREAMS = 100
"""At most, whatever satellites say: the fewest that RFC 9113 §6.5.2 recommends, and what many servers allow. A client opens
the others when its satellite has said that it may; until then they are not ours to keep."""

LEAST = Announcement(streams=1, window_bytes=0)
"""A client can ask, and no more: not 0 streams, for then its satellite would never be known."""

MOST = Announcement(STREAMS, INITIAL_WINDOW)
"""A smaller window than the initial one is no gain once satellites are known: the first message waits for a round trip."""


class Announcements:
    """Remembers satellites, and says what to announce. As large as there are satellites."""

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
        """Say what to announce to a client of this satellite; None: nobody knows yet whose."""
        return self._least if key is None else self._heard.get(key, self._least)


def _bounded(heard: Announcement) -> Announcement:
    return Announcement(
        max(LEAST.streams, min(heard.streams, MOST.streams)), min(heard.window_bytes, MOST.window_bytes)
    )
