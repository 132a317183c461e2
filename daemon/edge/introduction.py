"""Introduces a satellite to a client that has read SETTINGS of ours, because its satellite was not known yet.

The satellite gets the client's opening: its preface and first SETTINGS. The satellite's first frame, which must be SETTINGS
(RFC 9113 §3.4), is changed for the client: see proto/first_settings.py. Until this frame has come,

- the client hears nothing of the satellite, so that it can still be refused in words;
- the satellite gets no request of the client: if this connection stays silent another one is tried, and a request sent on
  both would be done twice.

A client that has heard nothing from us needs no introduction: the satellite's frames are the first that it reads.

    said SETTINGS   ACK has come    before the hand-off
    no              -               the transcript goes up; nothing else
    yes             yes             the opening goes up, the first frame comes down changed, the rest goes up
    yes             not yet         the same, then both ways are relayed until the ACK was taken out (replay.py)
"""

import trio

from bentpipe.daemon.connections.transport import TransportError
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.channel import Channel
from bentpipe.daemon.errors import DialFailed
from bentpipe.proto.first_settings import Announcement, FirstSettings, NoServer

AT_ONCE_S = 0.5
"""For the first frame while the client is not watched: servers send it as soon as they accept."""

FIRST_SETTINGS_DEADLINE_S = 60.0
"""For the first frame while the client is watched. A machine that has just woken from hibernation may listen, and yet read
its memory from disk for tens of seconds before it sends anything."""

SILENT = "the satellite is awake, but does not say a word"
HUNG_UP = "the satellite is awake, but hung up before it said a word"
NO_HTTP2 = "what listens at the satellite's address does not speak HTTP/2"


class HungUp(DialFailed):
    """The satellite accepted the connection and ended it, as a machine does that is being stopped."""


class Introduction:
    """One connection to a satellite, until its first frame has come."""

    def __init__(self, caller: Caller, satellite: Channel) -> None:
        self._caller = caller
        self._satellite = satellite
        self._first = FirstSettings(caller.greeting.announced)
        self.sent_bytes = 0
        """How much of the transcript the satellite has got."""
        self.words = b""
        """What the satellite has sent, for the client."""
        self.read_bytes = 0
        """How much of the satellite's stream that was."""

    @property
    def done(self) -> bool:
        """Whether the introduction is complete, or not needed."""
        return self.heard is not None or not self._caller.greeting.spoke

    @property
    def heard(self) -> Announcement | None:
        """What the satellite's SETTINGS say; None if they have not been read, or need not be."""
        return self._first.heard

    async def make_at_once(self) -> bool:
        """Try for AT_ONCE_S. Returns whether the introduction is done. Raises DialFailed."""
        if not self.done and not self._make_nowait():  # a local satellite has often answered by now: no deadline then
            with trio.move_on_after(AT_ONCE_S):
                await self._make()
            if not self.done:
                self._make_nowait()  # in a crowd the frame may have come in time, and this task had no turn to read it
        return self.done

    async def make(self) -> None:
        """Return when the introduction is done. Raises DialFailed (HungUp), after FIRST_SETTINGS_DEADLINE_S at the
        latest."""
        if self.done:
            return
        with trio.move_on_after(FIRST_SETTINGS_DEADLINE_S):
            await self._make()
            return
        raise DialFailed(f"no SETTINGS in {FIRST_SETTINGS_DEADLINE_S:g} s", peer_hint=SILENT)

    async def _make(self) -> None:
        """May be cancelled and called again: no byte is sent twice, and no byte that was read is lost."""
        try:
            while not self._make_nowait():
                if self.sent_bytes < len(self._caller.greeting.opening):
                    await self._satellite.wait_writable()
                else:
                    await self._satellite.wait_readable()
        except TransportError as exc:
            raise _hung_up(exc) from exc

    def _make_nowait(self) -> bool:
        """Send and read what can be at once. Returns whether the introduction is done. Raises DialFailed."""
        try:
            unsent = memoryview(self._caller.greeting.opening)[self.sent_bytes :]
            while unsent:
                sent = self._satellite.send_nowait(unsent)
                if not sent:
                    return False
                self.sent_bytes += sent
                unsent = unsent[sent:]
            while self.heard is None:
                data = self._satellite.receive_nowait()
                if data is None:
                    return False
                if not data:
                    raise HungUp("it hung up before its SETTINGS", peer_hint=HUNG_UP)
                self.read_bytes += len(data)
                self.words += self._first.receive_data(data)
        except TransportError as exc:
            raise _hung_up(exc) from exc
        except NoServer as exc:
            raise DialFailed(str(exc), peer_hint=NO_HTTP2) from exc
        return True


def _hung_up(error: TransportError) -> HungUp:
    return HungUp(f"before its SETTINGS: {error}", peer_hint=HUNG_UP)
