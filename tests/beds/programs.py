"""The beds' modules that are programs, as command lines."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def program(name: str) -> tuple[str, ...]:
    """The command line of `beds.NAME`, as a program of its own. It may import `beds`, whatever its environment is."""
    return ("env", f"PYTHONPATH={TESTS}", sys.executable, "-P", "-m", f"beds.{name}")
