"""The table's errors as ours: what is worth another attempt, and what an operator has to do first."""

import socket
from collections.abc import Callable

import pytest
import trio

from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.store import dynamodb_table as table_module
from bentpipe.daemon.store.dynamodb_table import Table


async def test_a_table_that_is_not_there_or_not_reachable(
    dynamodb: DynamoDbServer, tables: Callable[[str], Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Table("nowhere", region="eu-central-1", endpoint=dynamodb.url)
    with pytest.raises(StoreUnusable, match="bentpipe store init"):
        await missing.query("TOKEN")
    assert await missing.create()
    assert not await missing.create()
    assert await missing.query("TOKEN") == []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    attempts = 0

    async def sleep(seconds: float) -> None:
        nonlocal attempts
        attempts += 1

    monkeypatch.setattr(trio, "sleep", sleep)
    with pytest.raises(StoreError, match="Could not connect") as error:
        await Table("t", region="eu-central-1", endpoint=url).query("TOKEN")
    assert error.value.retryable
    assert attempts == table_module.ATTEMPTS - 1


async def test_without_a_region_it_is_useless_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with trio.fail_after(30), pytest.raises(StoreUnusable, match="region"):
        await Table("t", region=None, endpoint=None).query("TOKEN")
