"""Programs that tests run: the beds' own modules, and bentpipe's commands."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
BENTPIPE = Path(sys.executable).with_name("bentpipe")
COMMAND_DEADLINE_S = 60.0


def program(name: str) -> tuple[str, ...]:
    """The command line of `beds.NAME`, as a program of its own. It may import `beds`, whatever its environment is."""
    return ("env", f"PYTHONPATH={TESTS}", sys.executable, "-P", "-m", f"beds.{name}")


def bentpipe(config: Path, *arguments: str) -> str:
    """Run a command of bentpipe's with that configuration. Returns what it prints; fails the test if it fails."""
    done = subprocess.run(
        [BENTPIPE, *arguments, "--config", config],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
