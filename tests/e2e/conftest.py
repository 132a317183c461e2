"""A real `bentpipe serve` in a process of its own, with satellites on two gRPC stacks."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bentpipe.daemon.demo.edge_host import ORG, DemoSatellite, EdgeHost

PEERS = Path(__file__).parent.parent / "peers"
sys.path.insert(0, str(PEERS))

from clients import CLIENTS, Client  # noqa: E402 - the peers' folder is no package

GRPCLIB = (sys.executable, "-P", str(PEERS / "grpclib_satellite.py"), "{port}")


@pytest.fixture(scope="module")
def edge() -> Iterator[EdgeHost]:
    """An edge host that puts nothing to sleep by itself."""
    satellites = [
        DemoSatellite("grpcio"),
        DemoSatellite("grpclib", command=GRPCLIB),
        *(DemoSatellite(f"slow{number}", ("--boot", "1.5")) for number in range(8)),
        *(DemoSatellite(f"slow-grpclib{number}", command=(*GRPCLIB, "--boot", "1.5")) for number in range(8)),
        DemoSatellite("broken", ("--fail",)),
    ]
    with EdgeHost(satellites, sleep_after_s=600) as host:
        yield host


@pytest.fixture
def connect(edge: EdgeHost) -> Iterator[Callable[..., Client]]:
    """`connect(kind, satellite, token=None, extra=())`: a client of its own connection, closed at the end."""
    opened: list[Client] = []

    def open_client(
        kind: str, satellite: str, token: str | None = None, extra: tuple[tuple[str, str], ...] = ()
    ) -> Client:
        metadata = (
            ("satellite_name", satellite),
            ("satellite_org", ORG),
            ("satellite_token", edge.token if token is None else token),
            *extra,
        )
        opened.append(CLIENTS[kind](edge.port, edge.ca_pem, metadata))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()
