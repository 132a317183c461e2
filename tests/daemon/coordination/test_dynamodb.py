"""Rows in DynamoDB, and the coordination over them: real boto3 against moto's server, through the contracts."""

from collections.abc import AsyncIterator, Callable

import pytest

from beds.contracts.coordination import CoordinationContract, SharedContract, hosts
from beds.contracts.ledger import A, B
from beds.contracts.rows import RowsContract
from beds.stores.spoiled_rows import spoil, spoilings
from bentpipe.daemon.coordination.contract import Coordination
from bentpipe.daemon.coordination.dynamodb import DynamoRows
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.store.dynamodb_table import Table


@pytest.fixture
def rows(tables: Callable[[str], Table]) -> DynamoRows:
    return DynamoRows(tables("rows"))


class TestRows(RowsContract):
    """The suite that all rows pass."""


class TestShared(SharedContract):
    """Several hosts."""


class TestSharedByOne(CoordinationContract):
    """One host that might not be alone."""

    @pytest.fixture
    async def coordination(self, rows: DynamoRows) -> AsyncIterator[Coordination]:
        async with hosts(rows, "one") as (one,):
            yield one.coordination


async def test_a_row_whose_attribute_holds_anything(table: Table) -> None:
    rows = DynamoRows(table)
    for key in (A, B):
        assert (await rows.take(key, owner="o", seen="", version="v")).done
        assert (await rows.enter(key, "stay")).done
    item = await table.get(f"ROW#{B}", "ROW")
    for name, value in spoilings(item):
        spoil(table, item, name, value)
        if value is not None:
            with pytest.raises(StoreError):
                await rows.read(B)
        assert (await rows.read(A)).owner == "o"
    await rows.begin_incarnation("one", "v1")
    await rows.begin_incarnation("two", "v2")
    item = await table.get("STAY", "two")
    for name, value in spoilings(item):
        spoil(table, item, name, value)
        assert set(await rows.incarnations()) == {"one", "two"}, "it counts as alive"
