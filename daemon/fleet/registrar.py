"""Registers satellites that bentpipe does not own, takes their heartbeats, and keeps this host's as the store says.

A machine registers itself, gets a registration token, and shows it with each heartbeat, on any host. Without heartbeats it
is OFFLINE: its clients are refused in words, and the next heartbeat brings it back. It is never woken and never put to
sleep. `registered_address` says which addresses may be registered, and `daemon/registry/registered.py` who may take a name
or an address.

Owns: which registered satellites are in the fleet. Never connects to a satellite, and keeps no token.
"""

import contextlib
import dataclasses
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection
from typing import Protocol

import trio

from bentpipe.config.registration import RegistrationSection
from bentpipe.daemon.coordination.contract import InUse
from bentpipe.daemon.errors import (
    SATELLITE_WORDS,
    BentpipeError,
    LimitReached,
    NoSuchSatellite,
    NotPermitted,
    SatelliteExists,
    SatelliteInUse,
)
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.registered_address import IpAddress, check_allowed, check_source, checked_address
from bentpipe.daemon.fleet.row_reader import RowReader
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.registered import (
    AddressTaken,
    NameTaken,
    RegisteredElsewhere,
    RegisteredSatellite,
    RegisteredStore,
    RegistrationsFull,
    RegistrationWish,
)
from bentpipe.daemon.tasks import Owner, contained

log = logging.getLogger("bentpipe.fleet")

REFRESH_S = 1.0
"""Between reads of the store, as for launched satellites: every host knows a change within two seconds."""
LEAST_BEAT_S = 1.0
"""A heartbeat that comes sooner after the last one is answered, and not written."""
TOKEN_BYTES = 32
TOKEN_PREFIX = "bpr_"
UNKNOWN_TOKEN = "no satellite is registered with this registration token: register it again"
PLAINTEXT = "certificate.root_ca is missing: the daemon connects by TLS, and verifies the satellite by that authority"


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What a machine wants to register. The API has bounded its texts."""

    key: SatelliteKey
    host: str
    """Empty: the caller's address."""
    port: int
    platform: str
    version: str
    root_ca: str
    token: str
    """The registration token that it has from before, or empty."""


class RegisteredParts(Protocol):
    """What the rest of the daemon keeps of each registered satellite."""

    def check_authority(self, root_ca: str) -> None:
        """Check that satellites can be trusted by this authority, in PEM. Raises InvalidRequest."""
        ...

    def register(self, satellite: RegisteredSatellite, *, age_s: float) -> None:
        """Keep it, or what has changed of it. Its newest heartbeat is `age_s` old."""
        ...

    def end_use(self, key: SatelliteKey) -> None:
        """End the connections to a satellite, and what keeps it awake."""
        ...

    def forget(self, key: SatelliteKey) -> None:
        """A satellite is gone."""
        ...


@dataclasses.dataclass(slots=True)
class _Taken:
    row: RegisteredSatellite
    satellite: Satellite


class Registrar:
    """`run_registrar` must run."""

    def __init__(
        self,
        fleet: Fleet,
        store: RegisteredStore,
        parts: RegisteredParts,
        section: RegistrationSection,
        own_ports: Collection[int],
        *,
        most_per_org: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`own_ports` are those on which the daemon listens; more may become known later."""
        self._fleet = fleet
        self._store = store
        self._parts = parts
        self._section = section
        self._own_ports = own_ports
        self._most_per_org = most_per_org
        self._wall = wall
        self._taken: dict[SatelliteKey, _Taken] = {}
        self._by_token: dict[str, _Taken] = {}
        self._changing = trio.Lock()
        """Held while the store is read or written and this host's satellites follow."""
        self._refreshed = trio.Event()
        self._rows = RowReader(store.satellites, "registered satellites")
        self._unknown: set[SatelliteKey] = set()

    def follow(self, section: RegistrationSection, most_per_org: int) -> None:
        """Other rules and another limit hold for satellites that register from now on. Registered ones stay."""
        self._section = section
        self._most_per_org = most_per_org

    def has(self, key: SatelliteKey) -> bool:
        """Whether it is a registered satellite."""
        return key in self._taken

    # -- what satellites ask -------------------------------------------------------------------------------------------

    async def register(self, wish: Wish, principal: str, source: IpAddress) -> str:
        """Register a machine that calls from `source`. Returns its registration token.

        Raises InvalidRequest, NotPermitted, SatelliteExists, LimitReached, StoreError.
        """
        key = wish.key
        address = checked_address(wish.host, wish.port, source, self._section.networks, self._own_ports)
        if not wish.root_ca and not self._section.plaintext:
            raise NotPermitted(PLAINTEXT)
        if wish.root_ca:
            self._parts.check_authority(wish.root_ca)
        token = wish.token or TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        now_us = int(self._wall() * 1e6)
        row = RegisteredSatellite(
            *(key, address, wish.platform, wish.version, wish.root_ca, principal),
            *(_hash(token), now_us, now_us),
        )
        offline_before_us = now_us - int(self._section.offline_after_s * 1e6)
        async with self._changing:
            if self._fleet.find(key) is not None and key not in self._taken:
                raise SatelliteExists(f"there is another satellite {key} already")
            if self._fleet.has_machine_at(address):
                raise NotPermitted(f"{address} is another satellite's", peer_hint=f"{address} may not be registered")
            if wish.token and not self._knows(key, token):
                # The caller made it up, or it is of an older registration: it gets one that nobody else can know.
                token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
                row = dataclasses.replace(row, token_hash=_hash(token))
            known = await self._write(RegistrationWish(row, _hash(wish.token), offline_before_us, self._most_per_org))
            await self._take_up(known, age_s=0.0)
        fields = {"satellite": str(key), "address": str(address), "principal": principal}
        log.info("registered", extra={"fields": fields})
        return token

    def _knows(self, key: SatelliteKey, token: str) -> bool:
        taken = self._by_token.get(_hash(token))
        return taken is not None and taken.row.key == key

    async def _write(self, wish: RegistrationWish) -> RegisteredSatellite:
        try:
            return await self._store.register(wish)
        except NameTaken as exc:
            raise SatelliteExists(str(exc)) from exc
        except RegisteredElsewhere as exc:
            raise SatelliteExists(str(exc)) from exc
        except AddressTaken as exc:
            words = f"{wish.satellite.address} may not be registered"
            raise NotPermitted(str(exc), peer_hint=words) from exc
        except RegistrationsFull as exc:
            words = f"limits.max_registered_per_org: the org has {wish.most} registered satellites already"
            raise LimitReached(str(exc), peer_hint=words) from exc

    async def heartbeat(self, token: str, may: Callable[[SatelliteKey], bool], source: IpAddress) -> None:
        """Note that the machine with this registration token runs. `may` says whether the caller may manage a satellite.

        Raises NoSuchSatellite, NotPermitted (it comes from another address), StoreError.
        """
        taken = await self._find(token, may)
        check_source(source, taken.row.address)
        now_us = int(self._wall() * 1e6)
        if 0 <= now_us - taken.row.beat_us < LEAST_BEAT_S * 1e6:
            return
        row = taken.row = dataclasses.replace(taken.row, beat_us=now_us)
        # This host has heard it, whether the store can be written or not.
        self._parts.register(row, age_s=0.0)
        if not await self._store.beat(row, now_us):
            raise NoSuchSatellite(UNKNOWN_TOKEN)

    async def deregister(self, token: str, may: Callable[[SatelliteKey], bool]) -> None:
        """End a registration, and the connections to its satellite. Raises NoSuchSatellite, StoreError."""
        await self._remove(await self._find(token, may))

    async def _find(self, token: str, may: Callable[[SatelliteKey], bool]) -> _Taken:
        """The satellite of a token; one that was registered on another host is known after the next read of the store."""
        token_hash = _hash(token)
        if token_hash not in self._by_token:
            await self._refreshed.wait()
        taken = self._by_token.get(token_hash)
        if taken is None or not may(taken.row.key):
            raise NoSuchSatellite(UNKNOWN_TOKEN)
        return taken

    async def remove(self, key: SatelliteKey, *, force: bool) -> None:
        """End a registration for a caller that may manage the satellite; with `force` even if it is used.

        Raises NoSuchSatellite, SatelliteInUse, StoreError.
        """
        taken = self._taken.get(key)
        if taken is None:
            raise NoSuchSatellite(f"no registered satellite {key}", peer_hint=SATELLITE_WORDS)
        if not force:
            try:
                await taken.satellite.check_unused()
            except InUse as exc:
                raise SatelliteInUse(f"{key} is used now: remove it with --force, or when nobody uses it") from exc
        await self._remove(taken)

    async def _remove(self, taken: _Taken) -> None:
        async with self._changing:
            await self._store.remove(taken.row)
            if self._taken.get(taken.row.key) is taken:
                self._give_up(taken)
        log.info("deregistered", extra={"fields": {"satellite": str(taken.row.key)}})

    # -- as the store says ---------------------------------------------------------------------------------------------

    async def run_registrar(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store for ever. It has started when the store was read once, or could not be."""
        await self._refresh()
        task_status.started()
        while True:
            self._refreshed.set()
            self._refreshed = trio.Event()
            await trio.sleep(REFRESH_S)
            await self._refresh()

    async def _refresh(self) -> None:
        async with self._changing:
            before = {key: taken.row for key, taken in self._taken.items()}
            rows = await self._rows.read()
            if rows is None:
                return
            for key, taken in list(self._taken.items()):
                row = rows.get(key)
                if row is None or row.created_us != taken.row.created_us:
                    self._give_up(taken)
            for row in rows.values():
                known = self._taken.get(row.key)
                if known is not None and known.row is not before.get(row.key):
                    continue  # a heartbeat has come here during the read, which may not show it
                with contained(Owner("satellite registration", str(row.key))):
                    await self._follow(row)
            self._unknown &= set(rows)

    async def _follow(self, row: RegisteredSatellite) -> None:
        silent_s = self._wall() - row.beat_us / 1e6
        if silent_s > self._section.forget_after_s:
            with contextlib.suppress(BentpipeError):  # the next read tries again
                await self._store.remove(row)
            return
        try:
            self._check(row)
        except BentpipeError as exc:
            if row.key not in self._unknown:
                self._unknown.add(row.key)
                fields = {"satellite": str(row.key), "error": str(exc)}
                log.error("a registered satellite is not served by this host", extra={"fields": fields})
            return
        self._unknown.discard(row.key)
        await self._take_up(row, age_s=min(max(silent_s, 0.0), self._section.offline_after_s))

    def _check(self, row: RegisteredSatellite) -> None:
        """Check what another host may have allowed, by another configuration. Raises NotPermitted, SatelliteExists."""
        check_allowed(row.address, self._section.networks, self._own_ports)
        if not row.root_ca and not self._section.plaintext:
            raise NotPermitted(PLAINTEXT)
        if row.key not in self._taken and self._fleet.find(row.key) is not None:
            raise SatelliteExists("there is another satellite of this name")

    async def _take_up(self, row: RegisteredSatellite, *, age_s: float) -> None:
        """Have the satellite in this host's fleet, as it is registered. `age_s` counts if it is not there yet."""
        taken = self._taken.get(row.key)
        if taken is not None and taken.row.created_us != row.created_us:
            self._give_up(taken)
            taken = None
        if taken is not None:
            if taken.row != row:
                self._by_token.pop(taken.row.token_hash, None)
                taken.row = row
                self._by_token[row.token_hash] = taken
                self._parts.register(row, age_s=0.0)
            return
        with trio.CancelScope(shield=True):  # a client that leaves must not leave half of it
            self._parts.register(row, age_s=age_s)
            taken = _Taken(row, await self._fleet.add_registered(row.key))
            self._taken[row.key] = self._by_token[row.token_hash] = taken

    def _give_up(self, taken: _Taken) -> None:
        key = taken.row.key
        del self._taken[key]
        self._by_token.pop(taken.row.token_hash, None)
        taken.satellite.retire()
        self._parts.end_use(key)
        self._fleet.remove(taken.satellite)
        self._parts.forget(key)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest() if token else ""
