"""Whether a satellite's gate may be opened, and what a data plane then has to know of the satellite."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

from bentpipe.daemon.connections.dial_once import SatelliteTls, numeric
from bentpipe.daemon.fleet.gates import Gated
from bentpipe.daemon.model import Address, SatelliteKey


@dataclasses.dataclass(frozen=True, slots=True)
class ListenerOwner:
    """The process of a local satellite, by its listening socket: its user if nobody else has that one, else its sockets."""

    uid: int | None
    inodes: frozenset[int] = frozenset()


FindListener = Callable[[SatelliteKey, Address], ListenerOwner | None]
"""Finds the process that listens at a satellite's address; None if that is not a local satellite, or is not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class GateFacts:
    """What is told of an open gate."""

    address: Address
    tls: SatelliteTls | None
    owner: ListenerOwner | None
    """None: its certificate proves it."""


class GateFinder:
    """`proven`: satellites with a TLS name of their own. All three are read at each question."""

    def __init__(
        self,
        satellite_tls: Mapping[SatelliteKey, SatelliteTls],
        proven: Collection[SatelliteKey],
        find_listener: FindListener,
    ) -> None:
        self._satellite_tls = satellite_tls
        self._proven = proven
        self._find_listener = find_listener

    def find(self, satellite: Gated) -> GateFacts | None:
        """What to tell of the satellite; None if its clients have to ask.

        A cloud's satellite without a certificate of its own has no gate: its address is certain for seconds only, and the
        provider must be asked for them.
        """
        key, address = satellite.key, satellite.open_address
        if address is None or numeric(address) is None:
            return None
        tls = self._satellite_tls.get(key)
        if tls is not None and (tls.refused or not tls.trust):
            return None
        if key in self._proven:
            return None if tls is None else GateFacts(address, tls, None)
        owner = self._find_listener(key, address)
        if owner is None or not satellite.is_certain():
            return None
        return GateFacts(address, tls, owner)
