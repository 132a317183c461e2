"""Which listener of the configuration a data plane's listener is.

A data plane numbers its listeners by the configuration with which it was started. The control plane may have been started
later, with another order: by a number alone a port would get the API, or the domain, of another one. So the data plane tells
where each of its listeners listens, and the control plane finds the listener of that place.
"""

from collections.abc import Mapping, Sequence

from bentpipe.config.model import ListenerSection
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.dataplane.handover import place_number
from bentpipe.daemon.planes.records import LISTENER_COUNTERS

UNKNOWN = Port()
"""Of a place where the configuration has no listener any more: no API there, and satellites by metadata alone."""


def _port_of(section: ListenerSection) -> Port:
    return Port(
        satellite_domain=section.tls.satellite_domain if section.tls is not None else None,
        serves_api=section.api,
        one_request=section.one_request_per_connection,
    )


class PlanePorts:
    """The listeners of the configuration."""

    def __init__(self, listeners: Sequence[ListenerSection]) -> None:
        self._ports = [_port_of(each) for each in listeners]
        self._places = [place_number(each) for each in listeners]

    def find(self, counters: Mapping[str, int], listener: int) -> Port | None:
        """What a plane's listener is, by the plane's COUNTERS; None if it has no such listener.

        Of several listeners at one place (port 0) the order counts. An older plane tells no places: then its order counts.
        """
        told: dict[int, int] = {}
        while (place := counters.get(f"{LISTENER_COUNTERS}{len(told)}")) is not None:
            told[len(told)] = place
        if not told:
            return self._ports[listener] if listener < len(self._ports) else None
        if listener not in told:
            return None
        here = [index for index, place in enumerate(self._places) if place == told[listener]]
        alike = [index for index, place in told.items() if place == told[listener]].index(listener)
        return self._ports[here[alike]] if alike < len(here) else UNKNOWN
