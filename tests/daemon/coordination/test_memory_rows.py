"""The reference passes the contract too: what the simulation stands on."""

import pytest

from beds.contracts.rows import RowsContract
from beds.stores.memory_rows import MemoryRows


@pytest.fixture
def rows() -> MemoryRows:
    return MemoryRows()


class TestRows(RowsContract):
    """The suite that all rows pass."""
