"""Checks that the programs on a satellite are the ones that its settings were made for. It changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from bentpipe.daemon.image.programs.findings import Finding, fail, fine
from bentpipe.daemon.image.programs.looks import SatelliteLook
from bentpipe.daemon.image.programs.settings import PROGRAM_SUMS

REMEDY = "the machine image was made by another version of bentpipe: make it again (`bentpipe sat render --out`)"


def check_programs(look: SatelliteLook) -> Iterator[Finding]:
    """Each program has the digest that came with the settings."""
    text = look.text(str(PROGRAM_SUMS))
    if not text:
        yield fail("programs", f"{PROGRAM_SUMS} is not there", "launch the machine again")
        return
    sums = [line.split("  ", 1) for line in text.splitlines()]
    others = [path for digest, path in sums if _digest_of(look, path) != digest]
    if others:
        yield fail("programs", f"{len(others)} of {len(sums)} are others, such as {others[0]}", REMEDY)
    else:
        yield fine("programs", f"{len(sums)}, of the same version as the settings")


def _digest_of(look: SatelliteLook, path: str) -> str:
    try:
        return hashlib.sha256(look.path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


CHECKS = (check_programs,)
