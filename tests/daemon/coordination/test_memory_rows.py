"""The reference passes the contract too: what the simulation stands on."""

import pytest
from memory_rows import MemoryRows
from rows_contract import RowsContract


@pytest.fixture
def rows() -> MemoryRows:
    return MemoryRows()


class TestRows(RowsContract):
    """The suite that all rows pass."""
