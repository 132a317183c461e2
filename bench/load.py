"""Runs the native load generator and reads its report. native/load.c says what its options mean."""

import dataclasses
import json
import selectors
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, cast

from hdrh.histogram import HdrHistogram

from bench.lab import BUILD, PINNED, LabError, Placement

LOWEST_NS, HIGHEST_NS, DIGITS = 1, 300_000_000_000, 3
"""The layout of native/histogram.h."""
KEPT_LOWEST_NS, KEPT_DIGITS = 1000, 2
"""The layout of what results keep."""
QUANTILES = (0.5, 0.99, 0.999)
BEYOND = 5
"""The 99th percentile of twenty answers is the worst of them. It says something about the machine, and nothing of a peer."""
ENOUGH = 600
"""Requests that a sample should have so that its p99 means something."""
GRACE_S = 90.0
"""Time beside its phases, for opening connections and draining."""


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """A rate in requests a second (0: as many as the mode allows), and its duration."""

    rate: float
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class UnaryCall:
    """One gRPC call, the same in each request: its path, its message in hex, and the only message that is a right answer."""

    path: str
    body: str
    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to ask for; `port` and TLS come from the peer."""

    mode: Literal["rate", "closed", "connect", "idle"]
    phases: tuple[Phase, ...] = (Phase(0, 1),)
    connections: int = 1
    streams: int = 1
    task: Literal["echo", "download", "upload", "call"] = "echo"
    echo_bytes: int = 128
    messages: int = 1024
    message_bytes: int = 65536
    count: int = 0
    drain_s: float = 5.0
    seed: int = 1
    wait_settings: bool = True
    """Send no request before the server's SETTINGS, as grpc-go. A bentpipe connection is then spliced when it is warm: to
    a client that speaks first, it relays in Python until the ACK of its own SETTINGS has come."""
    resume: bool = False
    satellites: str = "bench"
    satellite_count: int = 0
    source_addresses: int = 1
    call: UnaryCall | None = None
    """With the task "call"."""

    def arguments(self) -> list[str]:
        """The generator's own options."""
        fields = dataclasses.asdict(self)
        fields |= fields.pop("call") or {}
        fields["phases"] = ",".join(f"{phase.rate!r}:{phase.seconds!r}" for phase in self.phases)
        fields["drain"] = fields.pop("drain_s")
        return [
            word
            for name, value in fields.items()
            for word in (f"--{name.replace('_', '-')}", str(int(value) if isinstance(value, bool) else value))
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class PhaseReport:
    """The results of one phase's requests."""

    rate: float
    seconds: float
    sent: int
    outcomes: dict[str, int]
    latency: HdrHistogram

    @property
    def answered(self) -> int:
        """Requests with an answer that had the right bytes."""
        return self.outcomes["answered"]

    @property
    def failed(self) -> int:
        """All the others."""
        return self.sent - self.answered

    def quantiles_us(self) -> dict[str, float]:
        """p50_us, p99_us and p99.9_us. A quantile is left out if fewer than BEYOND answers lie beyond it."""
        return {
            f"p{quantile * 100:g}_us": self.quantile_us(quantile)
            for quantile in QUANTILES
            if self.answered * (1 - quantile) >= BEYOND
        }

    def quantile_us(self, quantile: float) -> float:
        """The latency of this quantile (0.99) in microseconds."""
        return float(self.latency.get_value_at_percentile(quantile * 100)) / 1e3


@dataclasses.dataclass(frozen=True, slots=True)
class LoadReport:
    """One run."""

    phases: tuple[PhaseReport, ...]
    lateness: HdrHistogram
    elapsed_s: float
    moved_bytes: int
    resumed: int
    begin_ns: int
    first_answer_ns: int
    last_answer_ns: int
    cpu_s: float
    answers_ns: tuple[int, ...]
    """In connect mode with a count: when the answer to each request came (CLOCK_MONOTONIC), by its number; 0: never."""

    @property
    def answered(self) -> int:
        """Over all phases."""
        return sum(phase.answered for phase in self.phases)

    @property
    def failed(self) -> int:
        """Over all phases."""
        return sum(phase.failed for phase in self.phases)


class Load:
    """One process of the generator. It is warm on entry, `run` measures, and its connections stay open until the exit."""

    def __init__(
        self, port: int, tls_ca: str | None, token: str, spec: LoadSpec, placement: Placement = PINNED
    ) -> None:
        self._spec = spec
        self._command = [str(BUILD / "load"), "--port", str(port), *placement.options(), "--token", token]
        self._command += [*(("--tls", tls_ca) if tls_ca else ()), *spec.arguments()]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # as all that it measures: see Lab.start
        )
        try:
            self._line(GRACE_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def begin(self) -> None:
        """Let it run; `report` collects."""
        stdin = self._process.stdin
        if stdin is not None:
            stdin.write("\n")
            stdin.flush()

    def report(self) -> LoadReport:
        """Wait for the end of the run. Raises LabError."""
        return read_report(self._line(sum(p.seconds for p in self._spec.phases) + self._spec.drain_s + GRACE_S))

    def run(self) -> LoadReport:
        """Begin and report."""
        self.begin()
        return self.report()

    def _line(self, deadline_s: float) -> str:
        stdout = self._process.stdout
        if stdout is None:
            raise LabError("the load generator has no output")
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(deadline_s):
                self._process.kill()
                raise LabError(f"the load generator said nothing for {deadline_s:g} s")
        line = stdout.readline()
        if not line:
            _, words = self._process.communicate()
            raise LabError(f"the load generator failed: {words.strip()}")
        return line


def read_report(line: str) -> LoadReport:
    """Read the generator's one line of JSON."""
    raw = json.loads(line)
    phases = tuple(
        PhaseReport(
            float(phase["rate"]),
            float(phase["seconds"]),
            int(phase["sent"]),
            {str(name): int(count) for name, count in phase["outcomes"].items()},
            histogram_of(phase["latency_ns"]),
        )
        for phase in raw["phases"]
    )
    return LoadReport(
        phases,
        histogram_of(raw["lateness_ns"]),
        float(raw["elapsed_s"]),
        int(raw["moved_bytes"]),
        int(raw["resumed"]),
        int(raw["begin_ns"]),
        int(raw["first_answer_ns"]),
        int(raw["last_answer_ns"]),
        float(raw["cpu_s"]),
        tuple(map(int, raw["answers_ns"])),
    )


def histogram_of(counts: Sequence[Sequence[int]]) -> HdrHistogram:
    """Fill an HdrHistogram from pairs of value (ns) and count."""
    histogram = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
    for value, count in counts:
        histogram.record_value(value, count)
    return histogram


def encode(histogram: HdrHistogram) -> str:
    """HdrHistogram's own compressed form, which its tools in every language read; in two digits of a microsecond or more.

    The repository keeps a third of what was measured. No picture and no quantile changes by a percent.
    """
    kept = HdrHistogram(KEPT_LOWEST_NS, HIGHEST_NS, KEPT_DIGITS)
    kept.add(histogram)
    return cast(bytes, kept.encode()).decode()


def merge(histograms: Sequence[HdrHistogram]) -> HdrHistogram:
    """Add them up."""
    whole = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
    for histogram in histograms:
        whole.add(histogram)
    return whole
