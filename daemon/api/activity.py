"""What satellites do, as it is shown to people: for `bentpipe top` and for the page. Pure.

An answer of GetActivity has totals; two answers make rates.
"""

import dataclasses
import math

from google.protobuf.timestamp_pb2 import Timestamp

from bentpipe.proto import compute_pb2
from bentpipe.proto import operations_pb2 as pb

UNITS = ("B", "kB", "MB", "GB", "TB")
STATUS_PREFIX = "SATELLITE_STATUS_"


@dataclasses.dataclass(frozen=True, slots=True)
class ActivityRow:
    """A satellite as it is shown. Rates are bytes per second between two looks; None at the first one."""

    name: str
    state: str
    state_s: float | None
    """For how long it has had the state; None: since before the daemon started."""
    held: int
    connections: int
    up_rate: float | None
    down_rate: float | None
    condition: str = ""
    """What its responder tells; "" if it has none or is not awake."""
    builds: int | None = None
    pressure_percent: float | None = None
    """The highest share of the last 10 s in which tasks waited for CPU, memory or IO."""


class RateMeter:
    """Makes rates of the totals of successive answers."""

    def __init__(self) -> None:
        self._before: pb.GetActivityResponse | None = None
        self._rates: dict[str, tuple[float, float]] = {}

    def rows(self, answer: pb.GetActivityResponse) -> list[ActivityRow]:
        """The rows of an answer. If the host has not looked again since the answer before, the rates stay."""
        now = _seconds(answer.looked_at)
        before = self._before
        passed_s = 0.0 if before is None else now - _seconds(before.looked_at)
        if before is not None and passed_s > 0:
            totals = {each.name: (each.up_bytes, each.down_bytes) for each in before.satellites}
            self._rates = {
                each.name: _rates((each.up_bytes, each.down_bytes), totals[each.name], passed_s)
                for each in answer.satellites
                if each.name in totals
            }
        if before is None or passed_s != 0:
            self._before = answer
        return [self._row(each, now) for each in answer.satellites]

    def _row(self, each: pb.SatelliteActivity, now: float) -> ActivityRow:
        state_s = max(now - _seconds(each.since), 0.0) if each.HasField("since") else None
        up_rate, down_rate = self._rates.get(each.name, (None, None))
        row = ActivityRow(each.name, state_of(each.status), state_s, each.held, each.connections, up_rate, down_rate)
        return _with_reading(row, each.reading) if each.HasField("reading") else row


def _with_reading(row: ActivityRow, reading: pb.Reading) -> ActivityRow:
    return dataclasses.replace(
        row,
        condition=reading.condition,
        builds=reading.builds if reading.HasField("builds") else None,
        pressure_percent=max(reading.cpu_percent, reading.memory_percent, reading.io_percent),
    )


def _rates(totals: tuple[int, int], before: tuple[int, int], passed_s: float) -> tuple[float, float]:
    if totals < before or totals[1] < before[1]:
        before = (0, 0)  # the daemon was started again, or there is another satellite of that name
    return (totals[0] - before[0]) / passed_s, (totals[1] - before[1]) / passed_s


def state_of(status: compute_pb2.SatelliteStatus) -> str:
    """A state as people read it."""
    return compute_pb2.SatelliteStatus.Name(status).removeprefix(STATUS_PREFIX).lower()


def span(seconds: float | None) -> str:
    """A time in words; "" if it is not known."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole // 60 % 60:02} min"


def size(rate: float | None) -> str:
    """Bytes, or bytes a second, in words; "" if not known."""
    if rate is None:
        return ""
    power = min(int(math.log10(rate) // 3), len(UNITS) - 1) if rate >= 1 else 0
    value = rate / 1000**power
    return f"{value:.1f} {UNITS[power]}" if power else f"{value:.0f} {UNITS[0]}"


def _seconds(at: Timestamp) -> float:
    return at.seconds + at.nanos / 1e9
