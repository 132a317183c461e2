"""Clients that the opener and the joiner bring to their satellites.

A C program (tests/native/lanes) gives them every kind of both under ASan+UBSan and TSan, while gates are shut, tokens
replaced, and control planes changed. It checks every byte, and that nobody comes by what has ended.
"""

import os
import subprocess
from pathlib import Path

import pytest
import trustme

from beds.driver_build import build_lane_storm

STORM = int(os.environ.get("BENTPIPE_SHORT_CONNECTIONS", "600"))
LEFT = 16
"""Clients that are under way when all ends."""
KINDS = ("whole", "waits", "split", "wrong", "silent", "leaves", "aborted")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Certificate, key and authority of clients and satellites."""
    folder = tmp_path_factory.mktemp("authority")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "box.internal")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return folder / "cert.pem", folder / "key.pem", folder / "ca.pem"


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_storm_while_what_was_told_changes(files: tuple[Path, ...], sanitizer: str) -> None:
    program: list[str | Path] = [build_lane_storm(sanitizer), str(STORM), "11", *files]
    result = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    counts = {line.split()[0]: int(line.split()[1]) for line in result.stdout.splitlines()}
    print(f"\n{counts}")
    assert sum(counts[kind] for kind in KINDS) == STORM + LEFT
    assert all(counts[kind] for kind in KINDS)
    assert counts["spliced"]
    assert counts["committed"] > counts["spliced"], "some are cut, or fail, after they were committed"
