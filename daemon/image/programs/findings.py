"""What a check of a machine says. It must never print."""

from __future__ import annotations

import dataclasses
import enum


class Severity(enum.Enum):
    """How serious a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: what was checked, what was found, and what to do about it."""

    severity: Severity
    subject: str
    seen: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.severity.value:<5}{self.subject:<24}{self.seen}{remedy}"


def fine(subject: str, seen: str) -> Finding:
    """As it should be."""
    return Finding(Severity.OK, subject, seen)


def warn(subject: str, seen: str, remedy: str) -> Finding:
    """It works, and could be better or safer."""
    return Finding(Severity.WARN, subject, seen, remedy)


def fail(subject: str, seen: str, remedy: str) -> Finding:
    """It does not hold what a satellite promises."""
    return Finding(Severity.FAIL, subject, seen, remedy)
