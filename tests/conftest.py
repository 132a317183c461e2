"""What holds for every test.

Hypothesis judges values, never how long they took (that is bench/'s). The asserts of `beds` tell what they compared, as
those of tests do. A run that leaves a process or a mount behind fails: `beds.leftovers`.
"""

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# Containers often set this variable. Each process that a test starts would then compile the whole daemon again, for half a
# second of CPU time, and each worker of pytest-xdist all tests, for eight seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest.register_assert_rewrite("beds")
settings.register_profile("bentpipe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("coverage", parent=settings.get_profile("bentpipe"), derandomize=True, max_examples=20)
settings.load_profile("bentpipe")

LONGEST = ("test_guest.py", "test_buildkit.py", "guest", "e2e", "native", "responder")
"""Files that one process runs for long, and folders of such files, the longest first. Begun last, they would run alone while
the other processes wait."""


def pytest_configure(config: pytest.Config) -> None:
    """`beds` is imported only now, since its asserts could not be rewritten otherwise."""
    config.pluginmanager.import_plugin("beds.leftovers")

    if os.environ.get("BENTPIPE_TESTBED_DATA_PLANE") == "process":
        # A daemon that a test cancels leaves its data plane to the next one, and so Python's object for it.
        config.pluginmanager.import_plugin("beds.hosts.form")
        config.addinivalue_line("filterwarnings", "ignore:subprocess .* is still running:ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    items.sort(
        key=lambda item: min(LONGEST.index(part) if part in LONGEST else len(LONGEST) for part in item.path.parts)
    )
