"""Limits how many lines of one kind go to the log in a while. Pure: time enters as an argument."""

import dataclasses
import logging

WINDOW_S = 10.0
LINES_A_WINDOW = 20
"""Two lines a second of each kind: enough to see what happens, and about 35 MB a day at worst. The rest is a count."""
KINDS = 256
"""Kinds that are counted apart; the code has some dozens. All further kinds count as one kind together."""
OTHER = "other"


@dataclasses.dataclass(slots=True)
class _Window:
    until_s: float
    lines: int = 0
    more: int = 0
    level: int = logging.INFO


@dataclasses.dataclass(frozen=True, slots=True)
class Withheld:
    """Lines of a kind of which a window had too many; `level` is the highest of their levels."""

    kind: str
    lines: int
    level: int


class LogRates:
    """Counts lines by kind."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self.withheld = 0
        """Lines since the start that were counted and not written."""

    @property
    def counting(self) -> bool:
        """Whether `ended` will have something to report."""
        return any(window.more for window in self._windows.values())

    def admit(self, kind: str, level: int, now_s: float) -> bool:
        """Count a line. Returns whether it is to be written."""
        if kind not in self._windows and len(self._windows) >= KINDS:
            self._forget(now_s)
            if len(self._windows) >= KINDS:
                kind = OTHER
        window = self._windows.get(kind)
        if window is None or (window.until_s <= now_s and not window.more):
            window = self._windows[kind] = _Window(now_s + WINDOW_S)
        if window.lines < LINES_A_WINDOW:
            window.lines += 1
            return True
        window.more += 1
        window.level = max(window.level, level)
        self.withheld += 1
        return False

    def ended(self, now_s: float, *, all_of_them: bool = False) -> list[Withheld]:
        """The counts of windows that are over, or of all windows; each is returned once."""
        found = []
        for kind, window in list(self._windows.items()):
            if window.more and (all_of_them or window.until_s <= now_s):
                found.append(Withheld(kind, window.more, window.level))
                self._windows[kind] = _Window(now_s + WINDOW_S)
        return found

    def _forget(self, now_s: float) -> None:
        for kind, window in list(self._windows.items()):
            if window.until_s <= now_s and not window.more:
                del self._windows[kind]
