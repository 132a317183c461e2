"""atheris on the greeting for a few seconds; `make fuzz` goes on for longer."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from beds.programs import program

CORPUS = Path(__file__).parents[1] / "corpus"
SECONDS = 4


@pytest.mark.untraced
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (no wheel for here)")
def test_only_greeting_error_comes_out(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *program("fuzz.fuzz_greeting"),
            f"-max_total_time={SECONDS}",
            "-max_len=4096",
            f"-artifact_prefix={tmp_path}/",
            tmp_path,
            CORPUS,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
