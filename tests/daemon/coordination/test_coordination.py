"""Coordination of one host alone, and of several on rows in memory."""

from collections.abc import AsyncIterator

import pytest

from beds.contracts.coordination import CoordinationContract, SharedContract, hosts
from beds.stores.memory_rows import MemoryRows
from bentpipe.daemon.coordination.contract import Coordination, LocalCoordination


@pytest.fixture
def rows() -> MemoryRows:
    return MemoryRows()


class TestShared(SharedContract):
    """Several hosts."""


class TestLocal(CoordinationContract):
    """One host, nothing shared."""

    @pytest.fixture
    def coordination(self) -> Coordination:
        return LocalCoordination()


class TestSharedByOne(CoordinationContract):
    """One host that might not be alone."""

    @pytest.fixture
    async def coordination(self, rows: MemoryRows) -> AsyncIterator[Coordination]:
        async with hosts(rows, "one") as (one,):
            yield one.coordination
