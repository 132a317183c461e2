"""A table is one fleet's: the operator hears of a second one."""

from collections.abc import Callable

import pytest

from bentpipe.daemon.store.dynamodb_fleets import run_fleet_check
from bentpipe.daemon.store.dynamodb_table import Table


async def test_two_fleets_in_one_table_are_told(
    tables: Callable[[str], Table], caplog: pytest.LogCaptureFixture
) -> None:
    for fleet in ("prod", "prod", "staging", "prod"):
        await run_fleet_check(tables("shared"), fleet)
    await run_fleet_check(tables("alone"), "staging")
    told = [each.__dict__["fields"] for each in caplog.records if "several fleets" in each.getMessage()]
    assert [(each["fleet"], each["others"]) for each in told] == [("staging", "prod"), ("prod", "staging")]
