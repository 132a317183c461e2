"""A real `bentpipe serve` in a process of its own, with satellites on two gRPC stacks."""

import collections
import contextlib
import functools
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme

from beds.hosts.in_process import write_config
from beds.hosts.one_satellite import emulated_ec2
from beds.machines.service_models import read_models_once
from beds.peers.clients import Client
from beds.peers.kinds import CLIENTS, SERVER_KINDS, TABLE_SIZES, or_skip, satellite_command
from bentpipe.config.load import load_config
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost

read_models_once()

SLOW_SATELLITES = 40
"""Of each kind; they cost nothing until somebody wakes them."""
NGHTTPD = ("nghttpd", "--no-tls", "--echo-upload", "-a", "127.0.0.1")
SLOW = ("--boot", "0.6")


@pytest.fixture(scope="session")
def edge() -> Iterator[EdgeHost]:
    """An edge host that puts nothing to sleep by itself: a satellite of each kind, and many that take a while to boot."""
    satellites = [DemoSatellite("broken", ("--fail",))]
    for kind in SERVER_KINDS:
        command = satellite_command(kind)
        if command is not None:
            satellites += [DemoSatellite(kind, command=command)]
            satellites += [DemoSatellite(f"slow-{kind}-{n}", SLOW, command) for n in range(SLOW_SATELLITES)]
    for kind, age in (("grpcio-settings", "300"), ("grpc-go", "300ms")):
        command = satellite_command(kind)
        if command is not None:
            satellites += [
                DemoSatellite(f"small-table-{kind}", ("--header-table", "64"), command),
                DemoSatellite(f"no-table-{kind}", ("--header-table", "0", *SLOW), command),
                DemoSatellite(f"short-lived-{kind}", ("--max-age", age), command),
            ]
    strict = satellite_command("strict")
    if strict is not None:
        satellites += [
            DemoSatellite("strict", (), strict),
            *(DemoSatellite(f"slow-strict-{n}", SLOW, strict) for n in range(SLOW_SATELLITES)),
        ]
    if shutil.which("nghttpd"):
        satellites += [
            DemoSatellite("nghttpd", command=(*NGHTTPD, "{port}")),
            *(
                DemoSatellite(f"nghttpd-{size}", command=(*NGHTTPD, f"--header-table-size={size}", "{port}"))
                for size in TABLE_SIZES
            ),
            *(
                DemoSatellite(
                    f"slow-nghttpd-{n}", command=("sh", "-c", f'sleep 0.6; exec {" ".join(NGHTTPD)} "$0"', "{port}")
                )
                for n in range(SLOW_SATELLITES)
            ),
        ]
    with EdgeHost(satellites, sleep_after_s=600, settings='[[listener]]\naddress = "127.0.0.1:0"\n') as host:
        yield host


@pytest.fixture(scope="session")
def _slow_names() -> dict[str, Iterator[int]]:
    return collections.defaultdict(lambda: iter(range(SLOW_SATELLITES)))


@pytest.fixture
def asleep(_slow_names: dict[str, Iterator[int]]) -> Callable[[str], str]:
    """`asleep(kind)`: the name of a satellite that nobody has woken yet and that takes a while to boot."""
    return lambda kind: f"slow-{kind}-{next(_slow_names[kind])}"


Connect = Callable[..., Client]


@contextlib.contextmanager
def connecting(edge: EdgeHost) -> Iterator[Connect]:
    opened: list[Client] = []

    def open_client(
        kind: str,
        satellite: str,
        token: str | None = None,
        extra: tuple[tuple[str, str], ...] = (),
        *,
        plain: bool = False,
    ) -> Client:
        if satellite in SERVER_KINDS and satellite_command(satellite) is None:
            pytest.skip(f"no satellite of kind {satellite} is available here")
        metadata = (
            ("satellite_name", satellite),
            ("satellite_org", ORG),
            ("satellite_token", edge.token if token is None else token),
            *extra,
        )
        port, ca_pem = (edge.ports[1], None) if plain else (edge.port, edge.ca_pem)
        opened.append(or_skip(CLIENTS[kind], port, ca_pem, metadata))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


@pytest.fixture
def connect(edge: EdgeHost) -> Iterator[Connect]:
    """`connect(kind, satellite, token=None, extra=(), plain=False)`: a client of its own connection, closed at the end."""
    with connecting(edge) as connect:
        yield connect


@pytest.fixture(scope="module")
def connected(edge: EdgeHost) -> Iterator[Connect]:
    """`connected(kind, satellite)`: the one client of its kind to that satellite, shared by the module's cases."""
    with connecting(edge) as connect:
        yield functools.cache(connect)


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """EC2 whose machines are satellites on this host, and boto3's credentials for it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    with emulated_ec2() as emulator:
        yield emulator


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
        running = await nursery.start(functools.partial(serve, config_path=path), load_config(path))
        yield running
        running.drain.set()
