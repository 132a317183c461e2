"""Whether a satellite's machine still has the address at which it was last seen. No client is let in before that is certain.

A cloud reuses addresses: our machine's address of a minute ago may belong to another tenant now, who would be sent our
client's token. So an address is used only while

- the provider vouches for it (it has just looked, or it can see who listens there), and
- no other satellite of this daemon is believed to be there; if one is, both are looked at again.

If it is not certain, the daemon looks at the machine, once for all tasks that ask. While the provider cannot answer, the
satellite itself may prove it, by the boot id that it had when it was woken. If a satellite has a TLS certificate with a name
of its own, it is always certain: the dial verifies the name before anything is sent.
"""

import collections
import dataclasses
import functools
import ipaddress
import logging
import math
from collections.abc import Awaitable, Callable, Collection

import trio

from bentpipe.daemon.errors import MachineUncertain, ProviderError
from bentpipe.daemon.model import Address, Machine, MachineState, SatelliteKey

log = logging.getLogger("bentpipe.fleet")

LOOK_AGAIN_S = 0.5
"""Pause between looks that did not make it certain: for some seconds a cloud may show an older state."""
CERTAIN_DEADLINE_S = 10.0
"""How long the looks go on before the waiting clients are refused. For each client that comes later they begin again."""


class AddressClaims:
    """The addresses at which this daemon's satellites seem to be."""

    def __init__(self) -> None:
        self._places: dict[SatelliteKey, Address] = {}
        self._there: dict[Address, set[SatelliteKey]] = collections.defaultdict(set)
        self._looks: dict[SatelliteKey, Callable[[], Awaitable[None]]] = {}
        self._yielding: set[SatelliteKey] = set()

    def enter(self, key: SatelliteKey, look: Callable[[], Awaitable[None]], *, yields: bool = False) -> None:
        """Add a satellite. `look` looks at its machine and notes the address; it raises ProviderError.

        One that `yields` has named its address itself: it is not let in where a machine is that a provider knows, and does
        not keep clients from that one.
        """
        self._looks[key] = look
        (self._yielding.add if yields else self._yielding.discard)(key)

    def leave(self, key: SatelliteKey) -> None:
        """A satellite is gone, and claims nothing any more."""
        self.note(key, None)
        self._looks.pop(key, None)
        self._yielding.discard(key)

    def note(self, key: SatelliteKey, address: Address | None) -> None:
        """The satellite's machine was seen at `address`, or nowhere."""
        place = None if address is None else _normal(address)
        if (before := self._places.get(key)) == place:
            return
        if before is not None:
            self._there[before].discard(key)
            if not self._there[before]:
                del self._there[before]
            del self._places[key]
        if place is not None:
            self._places[key] = place
            self._there[place].add(key)

    def rivals(self, key: SatelliteKey) -> frozenset[SatelliteKey]:
        """The other satellites that seem to be at the same address."""
        place = self._places.get(key)
        if place is None:
            return frozenset()
        others = self._there[place] - {key}
        return frozenset(others if key in self._yielding else others - self._yielding)

    def provided_at(self, address: Address) -> frozenset[SatelliteKey]:
        """The satellites that their providers know to be at an address."""
        return frozenset(self._there.get(_normal(address), set()) - self._yielding)

    async def look_at(self, keys: Collection[SatelliteKey]) -> None:
        """Look at their machines, all at once. Raises ProviderError."""
        failures: list[ProviderError] = []

        async def look(key: SatelliteKey) -> None:
            try:
                await self._looks[key]()
            except ProviderError as exc:
                failures.append(exc)

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(look, key)
        if failures:
            raise failures[0]


@dataclasses.dataclass(frozen=True, slots=True)
class KnownAddresses:
    """What all satellites of a daemon share: their addresses, and which of them prove themselves by TLS."""

    claims: AddressClaims = dataclasses.field(default_factory=AddressClaims)
    proven: set[SatelliteKey] = dataclasses.field(default_factory=set)
    """Satellites that are launched at run time are added to it, and taken from it."""


class _Search:
    """Looks under way. Only a good end makes it certain."""

    def __init__(self, key: SatelliteKey) -> None:
        self.done = trio.Event()
        self.error: MachineUncertain | None = _uncertain(key, Doubt("no look ended", "it could not be looked at"))


@dataclasses.dataclass(frozen=True, slots=True)
class Doubt:
    """Why it is not certain: `words` for the operator, `hint` for clients. `hint` names no other satellite."""

    words: str
    hint: str


@dataclasses.dataclass(frozen=True, slots=True)
class Means:
    """The sources that tell where one satellite's machine is."""

    machine: Callable[[], Machine | None]
    """The last look at it."""
    vouches: Callable[[Machine], bool]
    """Whether the provider vouches for that look: see Provider.vouches_nowait."""
    look: Callable[[], Awaitable[None]]
    """Look again. Raises ProviderError."""
    recognises: Callable[[Address], Awaitable[bool]]
    """Ask what answers at an address whether it is the machine that was woken. Never raises an Exception."""
    address_age_s: float
    """How long a boot id vouches for an address: see MachineTraits."""
    unreachable: Callable[[], bool]
    """Another machine answers there, so the satellite is probed again. Returns False if it is being probed already."""
    owned: bool = True
    """Whether a provider knows its address. Otherwise the machine has named it itself."""


class Whereabouts:
    """Where one satellite's machine is."""

    def __init__(self, key: SatelliteKey, addresses: KnownAddresses, means: Means) -> None:
        self._key = key
        self._claims = addresses.claims
        self._addresses = addresses
        self._means = means
        self._search: _Search | None = None
        self._recognised: tuple[Address, float] | None = None
        self._vouched: tuple[Machine, float] | None = None
        """The look for which the provider has vouched last, and when."""
        self._claims.enter(key, means.look, yields=not means.owned)

    def note(self, machine: Machine) -> None:
        """It was seen."""
        self._claims.note(self._key, machine.address)

    def leave(self) -> None:
        """The satellite is gone."""
        self._claims.leave(self._key)

    def is_certain(self, since: float = math.inf) -> bool:
        """Whether the machine certainly has its last address at this moment. No I/O, no wait.

        With `since` (trio.current_time() seconds) an answer that the provider has given then or later is enough: the clients
        of a herd ask after they have connected, and many of them connect before the first one asks.
        """
        machine = self._means.machine()
        if machine is None or machine.address is None:
            return False
        if self._key in self._addresses.proven:
            return True
        if self._claims.rivals(self._key):
            return False
        return self._is_vouched_for(machine, since) or self._was_recognised(machine.address)

    def _is_vouched_for(self, machine: Machine, since: float) -> bool:
        if self._vouched is not None and self._vouched[0] is machine and self._vouched[1] >= since:
            return True
        asked_at = trio.current_time()
        self._vouched = (machine, asked_at) if self._means.vouches(machine) else None
        return self._vouched is not None

    async def make_certain(self, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        """Look until it is certain where the machine is, or that it does not run. Raises MachineUncertain.

        A task that asks meanwhile joins. A task that leaves does not end the looks: `spawn` starts a task for them.
        """
        if self.is_certain():
            return
        if self._search is None:
            self._search = _Search(self._key)
            spawn(functools.partial(self._run_search, self._search))
        search = self._search
        await search.done.wait()
        if search.error is not None:
            raise MachineUncertain(str(search.error), peer_hint=search.error.peer_hint) from search.error

    async def wait_certain(
        self, listening: Callable[[], Awaitable[None]], spawn: Callable[[Callable[[], Awaitable[None]]], None]
    ) -> None:
        """Return once `listening` has returned, and it is certain that it was this machine that listened."""
        told = ""
        while True:
            self.is_certain()  # asking tells the provider to look ahead of time while the machine boots
            await listening()
            try:
                await self.make_certain(spawn)
            except MachineUncertain as exc:
                if str(exc) != told:
                    log.warning("not let in", extra={"fields": {"satellite": str(self._key), "error": str(exc)}})
                told = str(exc)
                await trio.sleep(LOOK_AGAIN_S)
            else:
                return

    async def _run_search(self, search: _Search) -> None:
        try:
            with trio.move_on_after(CERTAIN_DEADLINE_S):
                while (doubt := await self._look_once()) is not None:
                    search.error = _uncertain(self._key, doubt)
                    await trio.sleep(LOOK_AGAIN_S)
                search.error = None
        finally:
            self._search = None
            search.done.set()

    async def _look_once(self) -> Doubt | None:
        """Look. Returns None if no client can reach another machine: the address is certain, or the machine is not up."""
        try:
            await self._claims.look_at([self._key, *self._claims.rivals(self._key)])
        except ProviderError as exc:
            if await self._recognise():
                return None
            return Doubt(f"its machine could not be looked at: {exc}", exc.peer_hint)
        machine = self._means.machine()
        if machine is None or machine.state is not MachineState.RUNNING or self.is_certain():
            return None
        if rivals := self._claims.rivals(self._key):
            names = " ".join(map(str, sorted(rivals)))
            return Doubt(f"{names} is said to be at {machine.address} too", "another machine is said to have it")
        if self._means.unreachable():
            return None
        return Doubt(f"what answers at {machine.address} may not be its machine", "something else answers there")

    async def _recognise(self) -> bool:
        """Ask the satellite, since the provider cannot be asked."""
        machine = self._means.machine()
        if machine is None or machine.address is None or self._claims.rivals(self._key):
            return False
        asked_at = trio.current_time()
        if not await self._means.recognises(machine.address):
            return False
        self._recognised = machine.address, asked_at
        return True

    def _was_recognised(self, address: Address) -> bool:
        if self._recognised is None:
            return False
        there, at = self._recognised
        return there == address and trio.current_time() - at <= self._means.address_age_s


def _uncertain(key: SatelliteKey, doubt: Doubt) -> MachineUncertain:
    return MachineUncertain(
        f"{key} is awake and not used: {doubt.words}",
        peer_hint=f"it is not certain that the satellite's address is still its own: {doubt.hint}",
    )


def _normal(address: Address) -> Address:
    """One spelling of an address: IPv6 can be written in many ways, and holds IPv4."""
    try:
        host = ipaddress.ip_address(address.host)
    except ValueError:
        return Address(address.host.lower(), address.port)
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return Address(str(mapped or host), address.port)
