"""A real `bentpipe serve` in a process of its own, with satellites on two gRPC stacks."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme

from bentpipe.config.load import load_config
from bentpipe.daemon.demo.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.daemon.service.serve import Daemon, serve

PEERS = Path(__file__).parent.parent / "peers"
sys.path.insert(0, str(PEERS))

from clients import CLIENTS, Client  # noqa: E402 - the peers' folder is no package
from in_process import write_config  # noqa: E402

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


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def client_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def daemon(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> AsyncIterator[Daemon]:
    """A daemon inside the test's own process, with a short greeting deadline."""
    path = write_config(tmp_path, authority, client_authority, limits='greeting_deadline = "1s"')
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve, load_config(path))
        yield running
        running.drain.set()
