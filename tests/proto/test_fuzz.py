"""atheris on the greeting for a few seconds; `make fuzz` goes on for longer."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SECONDS = 4


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (no wheel for here)")
def test_only_greeting_error_comes_out(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            TESTS / "fuzz" / "fuzz_greeting.py",
            f"-max_total_time={SECONDS}",
            "-max_len=4096",
            f"-artifact_prefix={tmp_path}/",
            tmp_path,
            TESTS / "corpus",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
