"""One data plane, as the control plane sees it: the records of one link, and what they mean here.

Owns the ids: which client, half, GO or splice each one is. It decides nothing about a client: `PlaneEvents` does.
"""

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import trio

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.transport import TransportError
from bentpipe.daemon.connections.trust_material import TrustMaterial
from bentpipe.daemon.edge.dial import NotConnected
from bentpipe.daemon.edge.plane_channel import PlaneChannel
from bentpipe.daemon.model import Address
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.bounds import (
    AUTHORITIES_BYTES,
    CERTIFICATE_BYTES,
    KEY_BYTES,
    METERS_A_RECORD,
    OFFERED_CLIENTS,
    TRUSTS_TAUGHT,
    UP_WINDOW,
)
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.link import Link
from bentpipe.native.tls import TlsError

log = logging.getLogger("bentpipe")

OPEN_GRACE_S = 1.0
"""How much longer than its own deadline the data plane may take to answer an OPEN."""

METERS_S = 5.0
"""For an answer to METERS. What is not known by then is what was known before."""

COUNTERS_S = 1.0
"""For COUNTERS that are asked for. They come once a second anyway."""

NO_TRUST = "the data plane does not have the certificates by which this satellite is trusted"
"""Without their name in OPEN the data plane would speak plaintext."""

TRUST_BOUNDS = (AUTHORITIES_BYTES, CERTIFICATE_BYTES, KEY_BYTES)
"""Of what TRUST carries."""

PLANE_GONE = "the data plane that had this connection is gone"


class GoFailed(Exception):
    """A GO was not spliced; the client's connection is over, unless `refused`. `outcome` is an Outcome's value."""

    def __init__(self, record: r.FailedRecord) -> None:
        super().__init__(record.words)
        self.outcome = record.outcome
        self.refused = record.step is r.FailedAt.REFUSED


SnapshotAnswer = s.GatedRecord | s.GrantedRecord | s.CreditedRecord


class PlaneEvents(Protocol):
    """What a data plane tells the daemon."""

    def arrived(self, plane: "RemotePlane", channel: PlaneChannel, record: r.ArrivedRecord) -> None:
        """A client. It waits until `take` is called for it."""
        ...

    def is_live(self, plane: "RemotePlane", record: r.LiveRecord) -> None:
        """A splice that an earlier control plane has made, or is making."""
        ...

    def was_admitted(self, plane: "RemotePlane", record: s.AdmittedRecord) -> None:
        """It has brought a client to its satellite itself. Raises ProtocolBroken."""
        ...

    def has_answered(self, plane: "RemotePlane", record: SnapshotAnswer) -> None:
        """It holds to what it was told for admitting clients. Raises ProtocolBroken."""
        ...

    def has_failed(self, plane: "RemotePlane", connection_id: int) -> None:
        """A GO was not spliced: its lease and its place are free."""
        ...

    def has_ended(self, plane: "RemotePlane", record: r.EndedRecord) -> None:
        """A splice is over, made by this control plane or by an earlier one."""
        ...

    def has_counted(self, plane: "RemotePlane", before: Mapping[str, int] | None) -> None:
        """It has told its counters; these are the ones before. None: what it had counted by now is not this process's."""
        ...

    def was_unoffered(self, record: r.UnofferedRecord) -> None:
        """A connection has ended that was never offered."""
        ...

    def is_busy(self, plane: "RemotePlane", record: r.BusyRecord) -> None:
        """A splice was not ended, since it has moved more than it may have."""
        ...


@dataclasses.dataclass(eq=False, slots=True)
class PlaneRequest:
    """An OPEN or GO without its answer."""

    answered: trio.Event = dataclasses.field(default_factory=trio.Event)
    failed: r.FailedRecord | None = None

    def answer(self, failed: r.FailedRecord | None = None) -> None:
        """It is answered; `failed` if it failed."""
        self.failed = failed
        self.answered.set()


@dataclasses.dataclass(eq=False, slots=True)
class PlaneAnswer:
    """A DONE that is waited for. `words` say why it could not be done; "" if it was."""

    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    words: str = PLANE_GONE


class RemotePlane:
    """`number` tells planes of one daemon apart. `seated` and `synced` are set as the link goes on."""

    def __init__(self, link: Link, number: int, events: PlaneEvents) -> None:
        self.number = number
        self.hello: r.HelloRecord | None = None
        self.seated: r.SeatedRecord | None = None
        self.synced = trio.Event()
        self.adopted = 0
        """Splices that were there when this process came."""
        self.counters: dict[str, int] = {}
        self._link = link
        self._events = events
        self._greeted = trio.Event()
        self._channels: dict[int, PlaneChannel] = {}
        self._opens: dict[int, PlaneRequest] = {}
        self._gos: dict[int, PlaneRequest] = {}
        self._last_client = 0
        self._halves = itertools.count(r.HALF_BIT + 1)
        self._taught: dict[str, TrustMaterial] = {}
        """By name, in the order of their last use."""
        self._dones: dict[int, list[PlaneAnswer]] = {}
        self._moved: dict[int, tuple[int, int]] = {}
        self._asking = trio.Lock()
        self._metered = trio.Event()
        self._lost = False
        self._accounted_for = 0
        """The number of the newest end that was accounted for, if the plane has to be told so; else 0."""
        self._early: list[tuple[PlaneChannel, r.ArrivedRecord]] | None = []
        """Clients that came before `accept`; None from then on."""

    def go_on_for(self, before: "RemotePlane") -> None:
        """This link is to the same process as an earlier one: ids stand for the same splices, and it has counted on."""
        self.number = before.number
        self.counters = before.counters
        self._moved = before._moved
        self._last_client = before._last_client

    @property
    def takes_snapshots(self) -> bool:
        """Whether it can admit clients itself."""
        return self.hello is not None and bool(self.hello.features & s.PlaneFeature.SNAPSHOTS)

    # -- the link ------------------------------------------------------------------------------------------------------

    def send_nowait(self, record: r.Record) -> None:
        """Queue a record, unless the plane is gone."""
        if not self._lost:
            self._link.send_nowait(record)

    async def wait_greeted(self) -> None:
        """Wait for the plane's HELLO."""
        await self._greeted.wait()

    @contextlib.contextmanager
    def gather(self) -> Iterator[None]:
        """Make a block in which several records are received. The ends among them are acknowledged by one record."""
        try:
            yield
        finally:
            if self._accounted_for:
                seq, self._accounted_for = self._accounted_for, 0
                self.send_nowait(r.KeptRecord(r.LINK_ID, seq))

    def receive(self, record: r.Record) -> None:
        """Take a record of the link, within `gather`. Raises ProtocolBroken."""
        match record:  # those of which each client has one come first
            case r.EndedRecord():
                self._ended(record)
            case s.AdmittedRecord():
                self._admitted(record)
            case r.WentRecord():
                if (asked := self._opens.pop(record.id, None) or self._gos.pop(record.id, None)) is not None:
                    asked.answer()
            case r.ArrivedRecord():
                self._arrived(record)
            case r.BytesRecord():
                if (channel := self._channel(record.id)) is not None:
                    channel.came(record)
            case r.WindowRecord():
                if (channel := self._channel(record.id)) is not None:
                    channel.may_say(record)
            case r.GoneRecord():
                if (channel := self._channel(record.id)) is not None:
                    channel.gone(record)
            case r.ClosedRecord():
                if (channel := self._channel(record.id)) is not None:
                    channel.closed()
            case r.FailedRecord():
                self._failed(record)
            case s.GatedRecord() | s.GrantedRecord() | s.CreditedRecord():
                self._events.has_answered(self, record)
            case r.BusyRecord():
                if record.id in self._moved:
                    self._moved[record.id] = record.moved, 0
                    self._events.is_busy(self, record)
            case _:
                self._receive_about_plane(record)

    def _receive_about_plane(self, record: r.Record) -> None:
        match record:
            case r.HelloRecord():
                self.hello = record
                self._greeted.set()
            case r.SeatedRecord():
                self.seated = record
            case r.SyncedRecord():
                self.synced.set()
            case r.LiveRecord():
                self._moved[record.id] = record.up, record.down
                self._last_client = max(self._last_client, record.id)
                self._events.is_live(self, record)
            case r.PingRecord(number=number):
                self.send_nowait(r.PongRecord(r.LINK_ID, number))
            case r.CountersRecord(counters=counters):
                before, self.counters = self.counters, dict(counters)
                is_ours = before or (self.seated is not None and self.seated.session == 1)
                self._events.has_counted(self, before if is_ours else None)
            case r.UnofferedRecord():
                self._events.was_unoffered(record)
            case r.DoneRecord(asked=asked, words=words):
                if words:
                    log.error("a data plane could not do it", extra={"fields": {"record": asked, "error": words}})
                for answer in self._dones.pop(asked, []):
                    answer.words = words
                    answer.done.set()
            case r.MeteredRecord(meters=meters):
                self._moved.update({each: (up, down) for each, up, down, _ in meters if each in self._moved})
                self._metered.set()
            case _:
                pass  # YIELD is followed by the end of the link; what is between data planes does not come here

    def _channel(self, connection_id: int) -> PlaneChannel | None:
        """The channel; None if it is over here. Raises ProtocolBroken for an id that there never was."""
        if not connection_id & r.HALF_BIT and connection_id > self._last_client:
            raise ProtocolBroken("a record for a client that has not arrived")
        return self._channels.get(connection_id)

    def lost(self) -> list[int]:
        """The link is over: every channel and every GO under way fails. Returns the ids of the splices that there were."""
        self._lost = True
        for channel in list(self._channels.values()):
            channel.lost(PLANE_GONE)
        self._channels.clear()
        failed = r.FailedRecord(0, r.FailedAt.REPLAY, errno.EPIPE, "broken", PLANE_GONE)
        for asked in (*self._opens.values(), *self._gos.values()):
            asked.answer(failed)
        for answer in itertools.chain.from_iterable(self._dones.values()):
            answer.done.set()
        self._metered.set()
        self._greeted.set()
        self.synced.set()
        return list(self._moved)

    def leave(self) -> None:
        """End the link in good order. What this process does with its channels afterwards reaches nobody."""
        self._link.say_bye(r.ByeCode.LEAVING, "the control plane leaves")
        self._lost = True
        self._link.close_soon()

    def forget(self, channel: PlaneChannel) -> None:
        """See Sending."""
        self._channels.pop(channel.id, None)

    async def ask(self, record: r.Record, kind: int) -> str:
        """Send a record that DONE answers, and wait for it. `kind` is the record's number.

        Returns why the plane could not do it, or that it is gone; "" if it has done it.
        """
        answer = PlaneAnswer()
        if not self._lost:
            self._dones.setdefault(kind, []).append(answer)
            self.send_nowait(record)
            await answer.done.wait()
        return answer.words

    # -- clients -------------------------------------------------------------------------------------------------------

    def _arrived(self, record: r.ArrivedRecord) -> None:
        again = bool(record.flags & r.ArrivalFlag.AGAIN)
        if record.id & r.HALF_BIT or record.id in self._channels or (record.id <= self._last_client and not again):
            raise ProtocolBroken("a client arrives with an id that was used")
        self._last_client = max(self._last_client, record.id)
        channel = PlaneChannel(self, record.id, record.first)
        self._channels[record.id] = channel
        if self._early is None:
            self._events.arrived(self, channel, record)
        elif len(self._early) < OFFERED_CLIENTS:
            self._early.append((channel, record))
        else:
            raise ProtocolBroken("more clients than may be offered without an answer")

    def take(self, channel: PlaneChannel) -> bool:
        """Go on with a client that has arrived, and let the plane offer another one. Returns False if it is gone."""
        if self._channels.get(channel.id) is not channel:
            return False
        # The plane offers the next client once this one is answered, and a held client says nothing for minutes.
        self.send_nowait(r.WindowRecord(channel.id, UP_WINDOW, 0))
        return True

    def accept(self) -> None:
        """Take clients in from now on, those first that have come already."""
        early, self._early = self._early or [], None
        for channel, record in early:
            if channel.id in self._channels:
                self._events.arrived(self, channel, record)

    def _admitted(self, record: s.AdmittedRecord) -> None:
        if record.id & r.HALF_BIT or record.id in self._channels or record.id in self._moved:
            raise ProtocolBroken("a client was admitted with an id that was used")
        self._last_client = max(self._last_client, record.id)
        self._moved[record.id] = 0, 0
        self._gos[record.id] = PlaneRequest()  # WENT or FAILED answers it; nobody waits
        self._events.was_admitted(self, record)

    # -- halves --------------------------------------------------------------------------------------------------------

    async def attempt(self, address: Address, tls: SatelliteTls | None, deadline_s: float) -> PlaneChannel:
        """Connect to a satellite once: see `Dials`. Raises NotConnected, TransportError, TlsError."""
        if tls is not None and (tls.refused or not tls.trust):
            raise TlsError(tls.refused or NO_TRUST)
        if tls is not None:
            self.teach(tls)
        half = next(self._halves)
        asked = self._opens[half] = PlaneRequest()
        channel = self._channels[half] = PlaneChannel(self, half, half=True)
        trust, name = ("", "") if tls is None else (tls.trust, tls.server_name or "")
        self.send_nowait(r.OpenRecord(half, address.port, int(deadline_s * 1000), address.host, trust, name))
        if self._lost:
            asked.answer(r.FailedRecord(half, r.FailedAt.DIAL, errno.EPIPE, "", PLANE_GONE))
        try:
            with trio.move_on_after(deadline_s + OPEN_GRACE_S):
                await asked.answered.wait()
            if not asked.answered.is_set():
                raise NotConnected(f"no answer in {deadline_s:g} s")
            if (failed := asked.failed) is not None:
                words = failed.words or os.strerror(failed.error)
                raise NotConnected(words) if failed.step is r.FailedAt.DIAL else TransportError(words)
        except BaseException:
            self._opens.pop(half, None)
            channel.close()
            raise
        return channel

    def teach(self, tls: SatelliteTls) -> None:
        """Let the plane know what it cannot read in a file, before it is told to use it. Raises TlsError."""
        if tls.material is not None:
            self._teach(tls.trust, tls.material)

    def _teach(self, name: str, material: TrustMaterial) -> None:
        known = self._taught.pop(name, None)
        self._taught[name] = material
        if known == material:
            return
        told = [text.encode() for text in (material.authorities, material.certificate, material.key)]
        if any(len(each) > most for each, most in zip(told, TRUST_BOUNDS, strict=True)):
            del self._taught[name]
            raise TlsError(f"{name}: the certificates are too long for the data plane")
        if len(self._taught) > TRUSTS_TAUGHT:
            oldest = next(iter(self._taught))
            del self._taught[oldest]
            self.send_nowait(r.TrustRecord(r.LINK_ID, oldest, b"", b"", b""))
        self.send_nowait(r.TrustRecord(r.LINK_ID, name, *told))

    # -- splices -------------------------------------------------------------------------------------------------------

    def go(self, record: r.GoRecord) -> "PlaneRequest":
        """Send a GO. From now on client and half are the plane's."""
        asked = self._gos[record.id] = PlaneRequest()
        self._moved[record.id] = 0, 0
        self.send_nowait(record)
        if self._lost:
            asked.answer(r.FailedRecord(record.id, r.FailedAt.REPLAY, errno.EPIPE, "broken", PLANE_GONE))
        return asked

    async def wait_went(self, asked: "PlaneRequest") -> None:
        """Wait until the GO is spliced. Raises GoFailed."""
        await asked.answered.wait()
        if asked.failed is not None:
            raise GoFailed(asked.failed)

    def _failed(self, record: r.FailedRecord) -> None:
        if (asked := self._opens.pop(record.id, None)) is not None:
            asked.answer(record)
        elif (asked := self._gos.pop(record.id, None)) is not None:
            asked.answer(record)
            self._moved.pop(record.id, None)
            self._events.has_failed(self, record.id)

    def _ended(self, record: r.EndedRecord) -> None:
        if (asked := self._gos.pop(record.id, None)) is not None:
            asked.answer()  # WENT was in what an earlier link lost
        self._moved.pop(record.id, None)
        self._events.has_ended(self, record)
        self._accounted_for = record.seq

    def over(self, connection_id: int) -> None:
        """A splice that ended with the plane is accounted for."""
        self._moved.pop(connection_id, None)

    @property
    def spliced(self) -> int:
        """Its splices, as far as they are known here."""
        return len(self._moved)

    def moved(self, connection_id: int) -> tuple[int, int]:
        """Bytes up and down, as far as they are known here. Raises KeyError if the splice is over."""
        return self._moved[connection_id]

    async def read_meters(self, ids: Sequence[int] | None = None) -> None:
        """Ask what the splices have moved, all of them by default. Returns when `moved` knows."""
        wanted = list(self._moved) if ids is None else list(ids)
        async with self._asking:
            for at in range(0, len(wanted), METERS_A_RECORD):
                if self._lost:
                    return
                self._metered = trio.Event()
                self.send_nowait(r.MetersRecord(r.LINK_ID, tuple(wanted[at : at + METERS_A_RECORD])))
                with trio.move_on_after(METERS_S):
                    await self._metered.wait()

    async def read_counters(self) -> None:
        """Ask for COUNTERS as they are now, and wait until they are there, for COUNTERS_S at most."""
        async with self._asking:
            if not self._lost:
                self._metered = trio.Event()
                self.send_nowait(r.MetersRecord(r.LINK_ID, ()))
                with trio.move_on_after(COUNTERS_S):
                    await self._metered.wait()

    def shut(self, connection_id: int, how: r.Shutting, moved: int = 0) -> None:
        """End a splice. Raises KeyError if it is over."""
        if connection_id not in self._moved:
            raise KeyError(connection_id)
        self.send_nowait(r.ShutRecord(connection_id, how, moved))
