"""What must be true, computed from results: one line for each claim, whether it holds or not."""

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Literal

from bench.peers.base import WIRES, Wire
from bench.peers.catalogue import L7_NAMES
from bench.questions import profile, storms
from bench.results import Results
from bench.session import CaseValue

Case = dict[str, CaseValue]
LATENCY, BYTES, NEW, IDLE = "added_latency", "cost_of_bytes", "new_connections", "idle_connections"
WAKES = "wakes"
API = "api_calls"
OURS, TCP = "bentpipe", "haproxy tcp"
PYTHONS = {"python obvious": "the obvious Python proxy's", "python uvloop": "the leanest Python proxy's"}
FIRST_REQUEST_MS = 20.0
STILL = 1.25
"""A tail that is higher by more has moved. On a quiet machine two runs of the same thing differ by a quarter at p99.9."""
FLOOR_KIB = 0.1
FLOOR_US = 10.0
"""Two runs of the same thing differ by as much on a quiet machine. A value of ours below it counts as this value. If a
peer's value is below it, the case says nothing, since `direct` was as slow as a proxy."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A figure and the limit it must keep; `low` and `high` are its range over cases."""

    number: int
    text: str
    figure: float
    low: float
    high: float
    side: Literal["at most", "at least"]
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the median keeps the limit."""
        return self.figure <= self.limit if self.side == "at most" else self.figure >= self.limit


def _claim(
    number: int, text: str, figures: list[float], side: Literal["at most", "at least"], limit: float
) -> Iterator[Claim]:
    if figures:
        yield Claim(number, text, statistics.median(figures), min(figures), max(figures), side, limit)


def all_claims(results: Results) -> list[Claim]:
    """Every claim for which there are samples."""
    return [
        *_latency(results),
        *_bytes(results),
        *_new_connections(results),
        *_idle(results),
        *_python(results),
        *_wakes(results),
        *_api(results),
        *_storms(results),
        *_prices(results),
        *_crowds(results),
    ]


def _added(results: Results, peer: str, value: str, case: Case) -> float | None:
    proxied = results.median(LATENCY, peer, value, case)
    direct = results.median(LATENCY, "direct", value, case)
    if proxied is None or direct is None:
        return None
    added = proxied - direct
    return max(added, FLOOR_US) if peer == OURS or added >= FLOOR_US else None


def _latency(results: Results) -> Iterator[Claim]:
    for wire in WIRES:
        cases = [dict(case) for case in results.cases(LATENCY) if dict(case)["wire"] == wire]
        for value, name in (("p50_us", "p50"), ("p99_us", "p99")):
            to_tcp, to_l7 = [], []
            for case in cases:
                ours, tcp = (_added(results, peer, value, case) for peer in (OURS, TCP))
                best = min((x for x in (_added(results, p, value, case) for p in L7_NAMES) if x), default=None)
                if ours is not None and tcp is not None:
                    to_tcp.append(ours / tcp)
                if ours is not None and best is not None:
                    to_l7.append(ours / best)
            yield from _claim(1, f"added latency, {name}, {wire}: to HAProxy mode tcp", to_tcp, "at most", 1.0)
            yield from _claim(1, f"added latency, {name}, {wire}: to the best L7 peer", to_l7, "at most", 0.5)


def _ratios(results: Results, question: str, value: str, wire: Wire, peers: tuple[str, ...]) -> list[float]:
    """The ratio of our value to the lowest of `peers`, case by case."""
    found = []
    for key in results.cases(question):
        case = dict(key)
        ours = results.median(question, OURS, value, case)
        others = [results.median(question, peer, value, case) for peer in peers]
        known = [other for other in others if other]
        if case.get("wire") == wire and ours is not None and known:
            found.append(ours / min(known))
    return found


def _bytes(results: Results) -> Iterator[Claim]:
    for wire, peers, name, limit in (
        ("plain", (TCP,), "HAProxy mode tcp without splice", 1.0),
        ("plain", L7_NAMES, "the best L7 peer", 0.5),
        ("tls", L7_NAMES, "the best L7 peer", 0.8),
    ):
        ratios = _ratios(results, BYTES, "cpu_s_per_gb", "tls" if wire == "tls" else "plain", peers)
        yield from _claim(2, f"CPU seconds per GB, {wire}: to {name}", ratios, "at most", limit)


def _new_connections(results: Results) -> Iterator[Claim]:
    case: Case = {"wire": "tls", "resumption": "no"}
    for value, name in (("connections_per_s", "as measured"), ("per_core_second", "per second of CPU")):
        ours, envoy = (results.median(NEW, peer, value, case) for peer in (OURS, "envoy"))
        ratio = [ours / envoy] if ours and envoy else []
        yield from _claim(3, f"new TLS connections, {name}: to Envoy", ratio, "at least", 1 / 3)
    waits = results.values(NEW, OURS, "half_rate_p99_ms", case)
    yield from _claim(3, "p99 of the first request at half the rate, in ms", waits, "at most", FIRST_REQUEST_MS)


def _idle(results: Results) -> Iterator[Claim]:
    for wire in WIRES:
        for peer in (TCP, "haproxy http"):
            whole, process = [], []
            for key in results.cases(IDLE):
                case = dict(key)
                ours, theirs = _memory(results, OURS, case), _memory(results, peer, case)
                if case["wire"] == wire and ours is not None and theirs is not None:
                    process.append(ours[0] / max(theirs[0], FLOOR_KIB))
                    whole.append(max(sum(ours), FLOOR_KIB) / max(sum(theirs), FLOOR_KIB))
            text = f"memory per idle connection, {wire}"
            yield from _claim(4, f"{text}, with the kernel's: to {peer}", whole, "at most", 1.0)
            yield from _claim(4, f"{text}, the process alone: to {peer}", process, "at most", 1.0)


def _memory(results: Results, peer: str, case: Case) -> tuple[float, float] | None:
    process = results.median(IDLE, peer, "process_kib", case)
    kernel = results.median(IDLE, peer, "kernel_kib", case)
    return None if process is None or kernel is None else (process, kernel)


def _python(results: Results) -> Iterator[Claim]:
    for peer, whose in PYTHONS.items():
        for wire in WIRES:
            for work in profile.WORKS:
                case: Case = {"wire": wire, "work": work}
                for part, title in (("cpu", "CPU"), ("user", "CPU in the program")):
                    ours, theirs = (results.median(profile.QUESTION, each, part, case) for each in (OURS, peer))
                    ratio = [theirs / ours] if ours and theirs else []
                    yield from _claim(5, f"{title} per {work}, {wire}: {whose} to ours", ratio, "at least", 5.0)


def _wakes(results: Results) -> Iterator[Claim]:
    """The delay between "the port listens" and the client's answer, with satellites woken one after the other."""
    for value, name, limit in (("delay_p50_ms", "p50", 30.0), ("delay_p99_ms", "p99", 100.0)):
        delays = [
            delay
            for key in results.cases(WAKES)
            if dict(key).get("per_second")
            for delay in results.values(WAKES, OURS, value, dict(key))
        ]
        yield from _claim(6, f"port listens to client answered, {name}, in ms", delays, "at most", limit)


def _api(results: Results) -> Iterator[Claim]:
    """The tail of spliced calls beside API calls: to none, and to the same calls at another daemon on the same core."""
    here = results.median(API, OURS, "p99.9_us", {"api calls": "here"})
    for where, name in (("nowhere", "without"), ("elsewhere", "beside another daemon's")):
        other = results.median(API, OURS, "p99.9_us", {"api calls": where})
        ratio = [here / other] if here and other else []
        yield from _claim(
            7, f"p99.9 of a spliced call beside 1,000 API calls a second: to {name}", ratio, "at most", STILL
        )


def _storms(results: Results) -> Iterator[Claim]:
    """The p99 of a spliced call beside 400 TLS handshakes a second, to the best of the others."""
    case: Case = {"storm": "handshakes"}
    others = [results.median(storms.QUESTION, peer, "p99_us", case) for peer in (TCP, *L7_NAMES)]
    best = min((other for other in others if other), default=None)
    for peer in (OURS, f"{OURS} realtime", f"{OURS} two processes"):
        ours = results.median(storms.QUESTION, peer, "p99_us", case)
        ratio = [ours / best] if ours and best else []
        text = f"p99 of a spliced call beside 400 handshakes a second, {peer}: to the best of the others"
        yield from _claim(8, text, ratio, "at most", 0.5)


def _prices(results: Results) -> Iterator[Claim]:
    """CPU of gigabytes and of new connections, to single peers."""
    case: Case = {"wire": "tls", "direction": "download"}
    ours, envoy = (results.values(BYTES, peer, "cpu_s_per_gb", case) for peer in (OURS, "envoy"))
    ratio = [statistics.median(ours) / statistics.median(envoy)] if ours and envoy else []
    yield from _claim(9, "CPU seconds per GB down, tls: to Envoy", ratio, "at most", 0.75)
    for wire, peer, limit in (("tls", TCP, 1.1), ("tls", "envoy", 0.75), ("plain", TCP, 0.9)):
        row: Case = {"wire": wire, "resumption": "no"}
        for form in (OURS, f"{OURS} two processes", f"{OURS} two processes snapshot"):
            mine, theirs = (results.median(NEW, each, "per_core_second", row) for each in (form, peer))
            ratio = [mine / theirs] if mine and theirs else []
            text = f"new connections per second of CPU, {wire}, {form}: to {peer}"
            yield from _claim(9, text, ratio, "at least", limit)


def _crowds(results: Results) -> Iterator[Claim]:
    """5,000 clients of one satellite, until the last one has its answer; 300 satellites at once, the median client."""
    for form in (OURS, f"{OURS} two processes"):
        for value, clients, satellites, limit, words in (
            ("listen_to_last_ms", 5000, 1, 400.0, "port listens to the last of 5,000 clients answered"),
            ("delay_p50_ms", 300, 300, 150.0, "port listens to client answered, 300 satellites at once, p50"),
        ):
            found = results.values(WAKES, form, value, {"clients": clients, "satellites": satellites})
            yield from _claim(10, f"{words}, {form}, in ms", found, "at most", limit)
