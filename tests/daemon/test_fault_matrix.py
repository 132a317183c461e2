"""A whole daemon in a storm of exceptions, under load: no splice is cut, no byte differs, and all of it goes on afterwards.

Local satellites and one in an emulated EC2 each have a build that moves checked bytes through the engine; new calls come
meanwhile, metrics are scraped, certificates are read again.
"""

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import boto3.session
import botocore.client
import pytest
import trio
import trustme

from beds.hosts.fault_storm import FAULTY, Storm, faulty_connection
from beds.peers.clients import CallError, GrpcioClient
from beds.ports import free_port
from bentpipe.config.load import load_config
from bentpipe.daemon import tasks
from bentpipe.daemon.connections import dial_once, transport
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.questions import Questions
from bentpipe.daemon.fleet import leases, satellite, watching
from bentpipe.daemon.fleet.machine.known import Known
from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.keeper import containment
from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.providers.ec2 import poller
from bentpipe.daemon.providers.process import keeper, kept, link, listening, output, spawn
from bentpipe.daemon.providers.process import provider as process
from bentpipe.daemon.service import exposition, tokens
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.native.engine import Engine

# A fault between a descriptor and its owner (in Trio's or the library's own code) leaves it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TOKEN = "bp_test"
LOCAL = ("one", "two", "three")
SPARE = tuple(f"spare{n}" for n in range(40))
"""Woken by new calls, in the storm and after it."""
STORM_S = 4.0
LONG_STORM_S = 30.0
CALM_S = 40.0
"""By when all is well again; back-off is bounded by a second here."""
END_S = 20.0
SPEED = 100.0
SATELLITE = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}")
MESSAGE_BYTES = 48 << 10

PLACES: tuple[tuple[object, str], ...] = (
    (botocore.client.BaseClient, "_make_api_call"),
    (boto3.session.Session, "client"),
    (trio.to_thread, "run_sync"),
    (trio.lowlevel, "wait_readable"),
    (trio.lowlevel, "wait_writable"),
    (trio, "open_tcp_stream"),
    (trio.socket, "getaddrinfo"),
    *((socket.socket, name) for name in ("accept", "bind", "connect_ex", "getsockopt", "getsockname")),
    *((transport.Transport, name) for name in ("receive_nowait", "send_nowait", "detach", "close_gracefully")),
    (transport, "tune_socket"),
    (dial_once, "resolve"),
    *((Questions, name) for name in ("boot_info", "read")),
    *((os, name) for name in ("pipe2", "pidfd_open", "listdir", "readlink", "set_blocking", "killpg", "close")),
    (subprocess, "Popen"),
    *((Path, name) for name in ("read_text", "open", "exists", "is_dir", "mkdir")),
    (spawn, "pick_port"),
    (keeper.KeeperClient, "spawn"),
    (link.KeeperLink, "call"),
    (kept.KeptProcess, "members"),
    (output.OutputLog, "take"),
    (containment.ProcessGroup, "pids"),
    (listening.Listeners, "is_listening"),
    (poller, "read_description"),
    (exposition, "write_text"),
    (json, "loads"),
    (sqlite3, "connect"),
    (tokens, "_refresh"),
    (Recorder, "record_nowait"),
    (SatelliteMachine, "handle"),
    (Known, "next_deadline"),
    (watching, "is_kept_awake"),
    (HandOff, "moved_bytes"),
    *((Engine, name) for name in ("counters", "statistics", "thread_cpu_s")),
)
"""Where the control plane calls out, and a few places of its own that may break."""


@pytest.fixture
def storm(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Storm:
    storm = Storm(request.node.callspec.params.get("seed", 0))
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **named: connect(*a, factory=faulty_connection(storm), **named))
    for owner, name in PLACES:
        storm.over(monkeypatch, owner, name)
    for module, name in ((tasks, "MOST_PAUSE_S"), (watching, "LOOK_AGAIN_MOST_S"), (satellite, "LOOK_AGAIN_MOST_S")):
        monkeypatch.setattr(module, name, 1.0)
    return storm


@pytest.fixture(autouse=True)
def _tidy(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What faults have left behind is this test's, and no other's: tracebacks in the captured log hold it."""
    yield
    caplog.clear()
    gc.collect()


@pytest.fixture
def emulator(aws_credentials: None) -> Iterator[Emulator]:
    command = (*SATELLITE, "--host", "{host}")
    with Emulator(ScaledClock(SPEED), machine_command=command, machine_port=free_port()) as emulator:
        yield emulator


def write_config(folder: Path, emulator: Emulator) -> Path:
    certificate = trustme.CA().issue_cert("localhost")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (folder / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    assert emulator.cloud.machines is not None
    lines = [
        '[[listener]]\naddress = "127.0.0.1:0"\n[[listener]]\naddress = "127.0.0.1:0"\n[listener.tls]',
        f'certificate = "{folder / "cert.pem"}"\nkey = "{folder / "key.pem"}"',
        f'[store]\npath = "{folder / "ledger.sqlite"}"\n[metrics]\naddress = "127.0.0.1:0"',
        '[daemon]\ndrain_deadline = "5s"',
        f'[[token]]\nname = "test"\nhash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"\ngrants = ["acme/*"]',
        f'[ec2]\nregion = "eu-central-1"\nendpoint = "{emulator.url}"\nfleet = "test"\npoll = "50ms"\nsweep = "100ms"',
        '[[satellite]]\norg = "acme"\nname = "cloud"\nprovider = "ec2"\nsleep_after = "10m"\nretry_after = "100ms"',
        f"[satellite.ec2]\nport = {emulator.cloud.machines.port}",
        f"[satellite.responder]\nport = {free_port()}\ninterval = 1",  # nobody listens there
    ]
    for name in (*LOCAL, *SPARE):
        lines += [f'[[satellite]]\norg = "acme"\nname = "{name}"\nsleep_after = "10m"\nretry_after = "100ms"']
        lines += [f"[satellite.process]\ncommand = {json.dumps(SATELLITE)}\nstop_grace = 2"]
    (folder / "bentpipe.toml").write_text("\n".join(lines))
    return folder / "bentpipe.toml"


class Build(threading.Thread):
    """One connection that moves bytes and looks at each of them, until it is told to stop."""

    def __init__(self, port: int, name: str, seed: int) -> None:
        super().__init__(name=f"build {name}")
        self.client = open_client(port, name)
        self.failure: BaseException | None = None
        self.calls = 0
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self.client.unary("Echo", b"first")

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                sent = self._random.randbytes(self._random.randrange(MESSAGE_BYTES))
                assert self.client.unary("Echo", sent) == sent
                self.calls += 1
        except BaseException as exc:
            self.failure = exc

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.client.close()


class Callers(threading.Thread):
    """New connections all the time, each with one call; what becomes of them is counted."""

    def __init__(self, port: int, names: Callable[[], str]) -> None:
        super().__init__(name="callers")
        self._port, self._names = port, names
        self._ended = threading.Event()
        self.answered: list[str] = []
        self.refused: list[str] = []
        self.wrong: list[bytes] = []

    def run(self) -> None:
        while not self._ended.is_set():
            name = self._names()
            try:
                if (got := call(self._port, name)) != name.encode():
                    self.wrong.append(got)
                self.answered.append(name)
            except CallError as exc:
                self.refused.append(f"{name}: {exc.details}")

    def end(self) -> None:
        self._ended.set()
        self.join()


def open_client(port: int, name: str) -> GrpcioClient:
    metadata = (("satellite_name", name), ("satellite_org", "acme"), ("satellite_token", TOKEN))
    return GrpcioClient(port, None, metadata)


def call(port: int, name: str, timeout_s: float = 2.0) -> bytes:
    client = open_client(port, name)
    try:
        return client.unary("Echo", name.encode(), timeout_s=timeout_s)
    finally:
        client.close()


async def in_thread(run: Callable[[], None]) -> None:
    """As trio.to_thread, which is in the storm."""
    done = threading.Event()
    failures: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as exc:
            failures.append(exc)
        done.set()

    threading.Thread(target=target).start()
    while not done.is_set():
        await trio.sleep(0.02)
    if failures:
        raise failures[0]


@contextlib.asynccontextmanager
async def running(path: Path) -> AsyncIterator[Daemon]:
    """The daemon, whose tasks and threads are the storm's; its drain ends in time."""
    codes: list[int] = []

    async def run(task_status: trio.TaskStatus[Daemon]) -> None:
        codes.append(await serve(load_config(path), task_status=task_status))

    async with trio.open_nursery() as nursery:
        token = FAULTY.set(True)
        daemon = await nursery.start(run)
        FAULTY.reset(token)
        yield daemon
        daemon.drain.set()
        with trio.move_on_after(END_S) as late:
            while not codes:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert not late.cancelled_caught, "the drain did not end"


@contextlib.asynccontextmanager
async def building(daemon: Daemon, names: tuple[str, ...]) -> AsyncIterator[list[Build]]:
    builds: list[Build] = []

    def begin() -> None:
        for seed, name in enumerate(names):
            builds.append(Build(daemon.addresses[0][1], name, seed))
            builds[-1].start()

    await in_thread(begin)
    live = set(daemon.handoff._live)
    assert len(live) == len(names)
    yield builds
    assert live <= set(daemon.handoff._live), "a build's splice has ended"
    assert [build.failure for build in builds] == [None] * len(builds)
    assert all(build.calls for build in builds)

    def end() -> None:
        for build in builds:
            build.end()

    await in_thread(end)


async def scrape(daemon: Daemon) -> None:
    """What comes of it is not looked at: in the storm it may be nothing."""
    with contextlib.suppress(OSError, trio.BrokenResourceError), trio.move_on_after(1):
        stream = await trio.open_tcp_stream(*daemon.metrics_addresses[0])
        async with stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            while await stream.receive_some():
                pass


async def trouble(daemon: Daemon, storm: Storm, seed: int, seconds: float) -> None:
    """Squalls of different strength, with an operator who asks for metrics and reads certificates again."""
    chance = random.Random(seed)
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        storm.rate = chance.choice((0.002, 0.02, 0.1, 0.5))
        storm.armed = True
        with trio.move_on_after(chance.uniform(0.1, 1.0)):
            while True:
                await scrape(daemon)
                daemon.reload()
                await trio.sleep(0.1)
        storm.armed = False
        await trio.sleep(chance.uniform(0, 0.3))


async def weather(storm: Storm, path: Path, seed: int, seconds: float) -> None:
    spares = itertools.cycle(SPARE[:-1])
    chance = random.Random(seed)
    async with running(path) as daemon:
        port = daemon.addresses[0][1]
        async with building(daemon, (*LOCAL, "cloud")):
            callers = Callers(port, lambda: chance.choice((*LOCAL, "cloud", next(spares))))
            callers.start()
            await trouble(daemon, storm, seed, seconds)
            assert len(storm.hits) > 20, "it was no storm"
            await in_thread(callers.end)
            assert callers.wrong == []
            # All of it goes on: each satellite answers a new call, one that was never woken too, and so do the metrics.
            daemon.reload()
            for name in (*LOCAL, "cloud", SPARE[-1], SPARE[0]):
                await in_thread(functools.partial(call_until_answered, port, name))
            states = {name: daemon.fleet.get(SatelliteKey("acme", name)).state for name in (*LOCAL, "cloud")}
            assert set(states.values()) == {SatelliteState.OPERATIONAL}, states
            if seed % 2:  # the end, too, is in a storm
                storm.rate, storm.armed = 0.1, True
        storm.armed = seed % 2 == 1
    print(f"\n{sum(storm.hits.values())} faults, {len(callers.answered)} calls answered, {len(callers.refused)} not")


def call_until_answered(port: int, name: str) -> None:
    deadline = time.monotonic() + CALM_S
    while True:
        try:
            assert call(port, name, timeout_s=5.0) == name.encode()
        except CallError as exc:
            if time.monotonic() > deadline:
                raise AssertionError(f"{name}: {exc}") from exc
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_exceptions(storm: Storm, emulator: Emulator, tmp_path: Path, seed: int) -> None:
    emulator.control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": "acme/cloud"})
    await weather(storm, write_config(tmp_path, emulator), seed, STORM_S)


@pytest.mark.parametrize("seed", range(2))
async def test_a_storm_in_one_satellite_is_noticed_by_no_other(
    monkeypatch: pytest.MonkeyPatch, emulator: Emulator, tmp_path: Path, seed: int
) -> None:
    """Its provider, its machine and its observers fail in half of all calls; the others answer every call meanwhile."""
    storm, victim = Storm(seed), SatelliteKey("acme", "one")

    def only_the_victims(owner: type, name: str, key_of: Callable[..., object]) -> None:
        struck, spared = storm.wrapped(owner, name), getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda self, *rest, **named: (struck if key_of(self, *rest) else spared)(self, *rest, **named),
        )

    for name in ("_step", "_tell", "_carry_out", "_stepped"):
        only_the_victims(satellite.Satellite, name, lambda self, *_: self.key == victim)
    only_the_victims(leases.Leases, "read_meters", lambda self, *_: self._feed.__self__.key == victim)
    for name in ("describe", "start", "stop"):
        only_the_victims(process.ProcessProvider, name, lambda _, machine_id, *__: "one" in machine_id)
    only_the_victims(process.ProcessProvider, "wait_changed", lambda _, seen: "one" in seen.machine_id)
    monkeypatch.setattr(satellite, "LOOK_AGAIN_FIRST_S", 0.05)
    for module in (tasks, watching, satellite):
        monkeypatch.setattr(module, "MOST_PAUSE_S" if module is tasks else "LOOK_AGAIN_MOST_S", 1.0)
    emulator.control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": "acme/cloud"})
    async with running(write_config(tmp_path, emulator)) as daemon:
        port, healthy = daemon.addresses[0][1], ("two", "three", "cloud")
        async with building(daemon, (*LOCAL, "cloud")):
            arrivals = [daemon.fleet.get(SatelliteKey("acme", name)).wakes for name in healthy]
            chance = random.Random(seed)
            callers = Callers(port, lambda: chance.choice(healthy))
            callers.start()
            storm.rate, storm.armed = 0.5, True
            for _ in range(int(STORM_S)):
                await in_thread(lambda: attempt(port, "one"))
                await trio.sleep(0.5)
            storm.armed = False
            await in_thread(callers.end)
            assert sum(storm.hits.values()) > 10
            assert (callers.refused, callers.wrong) == ([], [])
            assert len(callers.answered) > 10
            assert arrivals == [daemon.fleet.get(SatelliteKey("acme", name)).wakes for name in healthy]
            await in_thread(lambda: call_until_answered(port, "one"))


def attempt(port: int, name: str) -> None:
    with contextlib.suppress(CallError):
        call(port, name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
async def test_a_long_storm_of_exceptions(storm: Storm, emulator: Emulator, tmp_path: Path, seed: int) -> None:
    emulator.control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": "acme/cloud"})
    await weather(storm, write_config(tmp_path, emulator), seed, LONG_STORM_S)
