"""Awake satellites are reached on the data plane alone: by snapshots of what the control plane has told."""

import concurrent.futures
import contextlib
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from beds.contracts.ledger import check_laws
from beds.hosts.two_planes import PLAIN, TLS, TwoPlanes, read_intervals, two_planes
from beds.metrics import scrape
from beds.peers.clients import CallError
from beds.ports import free_port
from bentpipe.daemon.model import SatelliteKey, SatelliteState

LOCAL = SatelliteKey("acme", "local")
SNAPSHOT = 'admission = "snapshot"'
COMMAND = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}")


def local_satellite(sleep_after: str) -> str:
    """A process of this host: it outlives the control plane with its keeper."""
    return f"""
[[satellite]]
org = "{LOCAL.org}"
name = "{LOCAL.name}"
provider = "process"
min_awake = 0
retry_after = "100ms"
sleep_after = "{sleep_after}"
[satellite.process]
command = {json.dumps(COMMAND)}
stop_grace = "3s"
"""


@contextlib.contextmanager
def admitting(folder: Path, *, sleep_after: str = "1s", metrics_port: int = 0) -> Iterator[TwoPlanes]:
    """A host whose data plane has admitted a client already."""
    metrics = f'[metrics]\naddress = "127.0.0.1:{metrics_port}"\n' if metrics_port else ""
    sections = f'{metrics}[control]\npath = "{folder / "control.sock"}"\n{local_satellite(sleep_after)}'
    with two_planes(folder, sections=sections, daemon=SNAPSHOT) as host:
        until_admitted(host)
        yield host


def admitted(host: TwoPlanes) -> int:
    """How many clients the data plane has admitted, as control planes know it."""
    return sum(record["message"] == "spliced" and record.get("by") == "data plane" for record in host.records())


def ended(host: TwoPlanes) -> set[object]:
    """The ids of the local satellite's connections that have a record of their end."""
    lines = [each for each in host.records() if each["message"] == "connection ended" and each["end"] != "lost"]
    return {each["id"] for each in lines if each["satellite"] == str(LOCAL)}


def spliced(host: TwoPlanes) -> set[object]:
    """The ids of those whose beginning a control plane has told."""
    return {each["id"] for each in host.records() if each["message"] == "spliced"}


def until_admitted(host: TwoPlanes) -> None:
    """Call until a client was admitted by the data plane: the gate opens soon after the satellite has woken."""
    before = admitted(host)

    def one_more() -> bool:
        echo(host)
        return admitted(host) > before

    host.wait(one_more, "the data plane admits nobody")


def echo(host: TwoPlanes, port: int = PLAIN, key: SatelliteKey = LOCAL, words: bytes = b"hello") -> None:
    with contextlib.closing(host.client(port, key)) as client:
        assert client.unary("Echo", words) == words


def test_awake_satellites_are_reached_while_no_control_plane_is_there(tmp_path: Path) -> None:
    with admitting(tmp_path) as host:
        kept, before = [host.client(port, LOCAL) for port in (PLAIN, TLS)], admitted(host)
        for client in kept:
            assert client.unary("Echo", b"before") == b"before"
        host.wait(lambda: admitted(host) == before + len(kept), "not all of them have been told of")
        assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
        for port in (PLAIN, TLS):
            echo(host, port, words=b"nobody is asked")
            kept.append(host.client(port, LOCAL))
            assert kept[-1].unary("Echo", b"nobody is asked") == b"nobody is asked"
        host.start()
        adopted = [record["adopted"] for record in host.records() if record["message"] == "data plane seated"]
        assert adopted == [0, len(kept)]
        time.sleep(2.5)
        assert SatelliteState.STOPPING.value not in host.states(LOCAL)[2:], "it sleeps under clients"
        for client in kept:
            assert client.unary("Echo", b"after") == b"after"
        until_admitted(host)
        for client in kept:
            client.close()
        host.wait(lambda: host.states(LOCAL)[-1:] == ["sleep"], "it does not sleep after its last client")
        # Those that came while no control plane was there are in its records too, also the two that had gone by then.
        host.wait(lambda: len(ended(host) - spliced(host)) == 2 + 2, "ends are missing")


def test_nobody_is_brought_to_a_satellite_that_sleeps(tmp_path: Path) -> None:
    with admitting(tmp_path, sleep_after="300ms") as host:
        host.wait(lambda: host.states(LOCAL)[-1:] == ["sleep"], "it does not sleep")
        count = admitted(host)
        echo(host)
        assert admitted(host) == count, "a client was brought to a satellite that sleeps"
        until_admitted(host)  # now that it is awake again


def test_what_a_reload_takes_back_is_not_good_any_more_once_it_is_done(tmp_path: Path) -> None:
    """A token, then the switch."""
    port = free_port()
    with admitting(tmp_path, sleep_after="1h", metrics_port=port) as host:
        told = scrape(port)
        assert told["bentpipe_admitted_by_planes_total", ""] >= 1
        assert told["bentpipe_gates", ""] == 1
        metadata = (("satellite_org", "acme"), ("satellite_name", LOCAL.name), ("satellite_token", "another"))
        with grpc.insecure_channel(f"127.0.0.1:{host.ports[PLAIN]}") as channel:
            call = channel.unary_unary("/bentpipe.demo.Satellite/Echo")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", metadata=metadata, timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        host.wait(
            lambda: scrape(port).get(("bentpipe_unadmitted_total", "no-token"), 0) >= 1, "the reason is not counted"
        )
        text = host.config.read_text()
        host.config.write_text(text.replace('grants = ["acme/*"]', 'grants = ["acme/one"]'))
        said = host.run("reload")
        assert "acme/one" in said, said
        with pytest.raises(CallError, match="no such satellite, or not yours"):
            echo(host)
        host.config.write_text(text)
        host.run("reload")
        until_admitted(host)
        host.config.write_text(text.replace(SNAPSHOT, 'admission = "asked"'))
        host.run("reload")
        count = admitted(host)
        for _ in range(5):
            echo(host)
        assert admitted(host) == count
        host.config.write_text(text)
        host.run("reload")
        until_admitted(host)


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_nobody_is_lost_while_satellites_fall_asleep_and_control_planes_die(tmp_path: Path, seconds: int) -> None:
    """Clients come and go while their satellite falls asleep as soon as nobody uses it: most come in that moment."""
    failures: list[str] = []
    calls = 0
    over = threading.Event()

    def come_and_go(host: TwoPlanes, seed: int) -> None:
        nonlocal calls
        chance = random.Random(seed)
        while not over.is_set():
            try:
                with contextlib.closing(host.client(chance.choice((PLAIN, TLS)), LOCAL)) as client:
                    for _ in range(chance.randrange(1, 4)):
                        assert client.unary("Echo", b"words") == b"words"
                        calls += 1
                        time.sleep(chance.uniform(0, 0.05))
            except Exception as exc:
                failures.append(repr(exc))
            time.sleep(chance.choice((0.0, 0.15, 0.3, 0.6)))

    with admitting(tmp_path, sleep_after="100ms") as host, concurrent.futures.ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(come_and_go, host, seed) for seed in range(3)]
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            time.sleep(seconds / 4)
            number += 1
            if number % 2:
                host.end_control(signal.SIGKILL)
                time.sleep(0.5)
                host.start()
        over.set()
        for worker in workers:
            worker.result()
        assert failures == []
        assert calls > 20
        assert admitted(host) > 1
        host.wait(lambda: host.states(LOCAL)[-1:] == ["sleep"], "it does not sleep after its last client")
        assert host.end_control(signal.SIGTERM) in (0, 3)
    check_laws(read_intervals(host.ledger))
