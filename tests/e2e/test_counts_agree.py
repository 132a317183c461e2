"""The clients' own counts, the log, the store, the metrics, the page and `bentpipe top` tell the same story.

Clients of every kind come at once, in an order that a seed decides: good ones, some that are refused, that break the rules,
that leave or reset, and some whose satellite dies.
"""

import collections
import contextlib
import dataclasses
import json
import random
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import trio
import trustme
from prometheus_client.parser import text_string_to_metric_families

from beds.hosts.admin_client import PageClient
from beds.hosts.form import serve_file
from beds.hosts.in_process import PLAIN, TOKEN, exchange, said, write_config
from beds.http2 import EMPTY_SETTINGS
from beds.peers.crowd import PREFACE, answered_of, call
from beds.programs import BENTPIPE
from beds.quoted import QUOTED
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.records.lines import LINE
from bentpipe.daemon.records.telling import Fields, RecordFinder
from bentpipe.daemon.service.serve import Daemon

DEADLINE_S = 60.0
CLIENTS = 110
"""With more of them, strangers of one kind would pass the number of which all get a line (`daemon/logs.py`)."""
AT_ONCE = 12
OPEN = 3
"""Clients that stay while the counts of the moment are compared."""
WRONG = {
    Outcome.MALFORMED: PREFACE + EMPTY_SETTINGS + b"\0\0\1\0\0\0\0\0\1x",
    Outcome.HTTP1: b"GET / HTTP/1.1\r\n\r\n",
    Outcome.NOT_HTTP2: b"\x00\x00nonsense" * 20,
    Outcome.TLS_ON_PLAIN_PORT: b"\x16\x03\x01\x00\xc8" + b"\1" * 200,
    Outcome.UNTRUSTED_PROXY_HEADER: b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
}
ENDS = {outcome.value for outcome in Outcome}


@dataclasses.dataclass
class Tally:
    """What the clients know themselves."""

    came: int = 0
    ended: collections.Counter[Outcome] = dataclasses.field(default_factory=collections.Counter)
    """Of those whose end a client can know."""
    quoted: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    """The ids that refusals quoted."""
    up: int = 0
    down: int = 0


@pytest.fixture
def folder(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> Path:
    sections = (
        f'[metrics]\naddress = "127.0.0.1:0"\n[store]\npath = "{tmp_path / "ledger.sqlite"}"\n'
        f'[control]\npath = "{tmp_path / "control.sock"}"\n[admin]\npath = "{tmp_path / "admin.sock"}"\n'
    )
    write_config(tmp_path, authority, client_authority, limits='greeting_deadline = "20s"', sections=sections)
    return tmp_path


@pytest.fixture
async def daemon(folder: Path) -> AsyncIterator[Daemon]:
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, folder / "bentpipe.toml")
        yield running
        running.handoff.abort_all()
        running.drain.set()


class Clients:
    """Each method is one client from its coming to its end."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self._daemon = daemon
        self._random = random.Random(seed)
        self.tally = Tally()

    async def run_all(self, count: int) -> None:
        """So many clients, some at once."""
        kinds = [self.good, self.good, self.good, self.resets, self.stranger, self.unusable, self.wrong, self.probe]
        limit = trio.CapacityLimiter(AT_ONCE)

        async def one(number: int) -> None:
            async with limit:
                await kinds[number % len(kinds)]()

        order = list(range(count))
        self._random.shuffle(order)
        async with trio.open_nursery() as nursery:
            for number in order:
                nursery.start_soon(one, number)

    async def good(self, *, reset: bool = False) -> None:
        """A call that is answered, and a close in good order, or a reset."""
        sent = call("sat", TOKEN, self._random.randbytes(self._random.randrange(16_000)))
        async with await self._come() as stream:
            await stream.send_all(sent)
            received = await until_answered(stream)
            if reset:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                await stream.send_eof()
                async for chunk in stream:
                    received += chunk
        self.tally.ended[Outcome.SPLICED] += 1
        self.tally.up += len(sent)
        self.tally.down += len(received)

    async def resets(self) -> None:
        await self.good(reset=True)

    async def stranger(self) -> None:
        """A token that nobody knows."""
        await self._refused(call("sat", "bp_wrong"))

    async def unusable(self) -> None:
        """A satellite whose program ends at once."""
        await self._refused(call("broken", TOKEN))

    async def wrong(self) -> None:
        """It breaks a rule of the protocol, or speaks another one."""
        outcome = self._random.choice(sorted(WRONG, key=lambda each: each.value))
        self.tally.came += 1
        await exchange(self._daemon, PLAIN, WRONG[outcome])
        self.tally.ended[outcome] += 1

    async def probe(self) -> None:
        """It connects and closes."""
        self.tally.came += 1
        await exchange(self._daemon, PLAIN, b"", close=True)
        self.tally.ended[Outcome.PROBE] += 1

    @contextlib.asynccontextmanager
    async def stays(self) -> AsyncIterator[trio.SocketStream]:
        """A client that has had its answer, and is silent."""
        sent = call("sat", TOKEN)
        async with await self._come() as stream:
            await stream.send_all(sent)
            received = await until_answered(stream)
            yield stream
            with contextlib.suppress(trio.BrokenResourceError):
                async for chunk in stream:
                    received += chunk
        self.tally.ended[Outcome.SPLICED] += 1
        self.tally.up += len(sent)
        self.tally.down += len(received)

    async def _refused(self, sent: bytes) -> None:
        self.tally.came += 1
        words = said(await exchange(self._daemon, PLAIN, sent))
        found = QUOTED.search(words)
        assert found is not None, words
        self.tally.quoted[found[1].decode()] = Outcome.REFUSED
        self.tally.ended[Outcome.REFUSED] += 1

    async def _come(self) -> trio.SocketStream:
        self.tally.came += 1
        return await trio.open_tcp_stream(*self._daemon.addresses[PLAIN])


async def until_answered(stream: trio.SocketStream) -> bytearray:
    """Read until the call's trailers, and acknowledge the settings, as clients do."""
    received = bytearray()
    with trio.fail_after(DEADLINE_S):
        while not answered_of(received):
            data = await stream.receive_some()
            assert data, received
            received += data
    return received


def metrics_of(text: str) -> dict[tuple[str, str], float]:
    """Each sample of a scrape by its name and the value of its only label."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if len(sample.labels) <= 1
    }


async def scrape(daemon: Daemon) -> dict[tuple[str, str], float]:
    host, port = daemon.metrics_addresses[0]
    page = PageClient((host, port))
    return metrics_of((await trio.to_thread.run_sync(page.get, "/metrics")).text)


async def page_numbers(folder: Path) -> dict[str, str]:
    """What the page for operators says of the host."""
    answer = await trio.to_thread.run_sync(PageClient(folder / "admin.sock").get, "/")
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", answer.text))


async def top_connections(folder: Path) -> int:
    """What `bentpipe top` says of the satellite."""
    command = [str(BENTPIPE), "top", "--once", "--json", "--org", "acme", "--server", f"unix:{folder / 'api.sock'}"]
    done = await trio.run_process(command, capture_stdout=True)
    [row] = [each for each in json.loads(done.stdout)["satellites"] if each["name"] == "sat"]
    connections: int = row["connections"]
    return connections


def kill_satellite() -> None:
    """SIGKILL the program of acme/sat, as the OOM killer would. It is the only one that runs here."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if {"bentpipe.daemon.testbed.satellite", "--boot"} <= set(process.cmdline()):
                process.send_signal(signal.SIGKILL)


def spliced(fields: Fields) -> bool:
    """Whether a record is that of a connection that was spliced: its end is then the engine's."""
    return fields["end"] not in ENDS


def of_a_port(fields: Fields) -> bool:
    """Whether a record is not that of `bentpipe top`: it asks by a Unix socket, which the metrics of the ports leave out."""
    return str(fields["peer"]).startswith("127.0.0.1:")


async def compare_now(daemon: Daemon, folder: Path) -> None:
    """While OPEN clients stay, all say so."""
    metrics = await scrape(daemon)
    page = await page_numbers(folder)
    found = await RecordFinder(daemon.records.connections.book, lambda: None).newest(OPEN + 1)
    counts = {
        "metrics": metrics["bentpipe_splices", ""],
        "page": int(page["Spliced now"]),
        "top": await top_connections(folder),
        "records": len([each for each in found if each["end"] == "open"]),
        "daemon": daemon.handoff.live,
    }
    assert set(counts.values()) == {OPEN}, counts


async def compare_all(daemon: Daemon, folder: Path, tally: Tally, lines: list[Fields]) -> None:
    """All have ended: every count is the clients' own."""
    connections = daemon.records.connections
    assert connections.writer is not None
    stored: list[Fields] = []
    with trio.fail_after(DEADLINE_S):
        while len(stored) < tally.came:
            await trio.sleep(0.05)
            found = await RecordFinder(connections.book, lambda: connections.writer).newest(2 * tally.came)
            stored = [each for each in found if of_a_port(each)]
    metrics, page = await scrape(daemon), await page_numbers(folder)
    assert len(stored) == len(lines) == tally.came
    assert {each["id"]: each["end"] for each in stored} == {each["id"]: each["end"] for each in lines}
    assert metrics["bentpipe_connections_accepted_total", ""] == tally.came == int(page["Accepted"])
    by_outcome = {
        outcome: count for outcome in Outcome if (count := metrics["bentpipe_connections_ended_total", outcome.value])
    }
    assert by_outcome == tally.ended
    ended = collections.Counter(Outcome.SPLICED if spliced(each) else Outcome(str(each["end"])) for each in stored)
    assert ended == tally.ended
    assert int(page["Refused"]) == tally.ended[Outcome.REFUSED]
    of = {str(each["id"]): str(each["end"]) for each in stored}
    assert {found: of[found] for found in tally.quoted} == {found: end.value for found, end in tally.quoted.items()}
    assert len(tally.quoted) == tally.ended[Outcome.REFUSED]
    reasons = collections.Counter(str(each["end"]) for each in stored if spliced(each))
    assert {
        name[1]: int(value) for name, value in metrics.items() if name[0] == "bentpipe_splices_ended_total" and value
    } == dict(reasons)
    moved = {way: sum(int(str(each[f"{way}_bytes"])) for each in stored if spliced(each)) for way in ("up", "down")}
    assert moved == {"up": tally.up, "down": tally.down}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
async def test_all_counts_are_the_clients_own(
    daemon: Daemon, folder: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    caplog.set_level("INFO")
    clients = Clients(daemon, seed)
    await clients.run_all(CLIENTS)
    with trio.fail_after(DEADLINE_S):
        await daemon.handoff.wait_none()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(OPEN):
            await stack.enter_async_context(clients.stays())
        await compare_now(daemon, folder)
        kill_satellite()
    await clients.run_all(CLIENTS // 5)
    with trio.fail_after(DEADLINE_S):
        while daemon.edge.book.open_count:
            await trio.sleep(0.02)
    lines: list[Fields] = [getattr(each, "fields") for each in caplog.records if each.message == LINE]  # noqa: B009
    await compare_all(daemon, folder, clients.tally, list(filter(of_a_port, lines)))
