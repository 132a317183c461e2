"""One DynamoDB table: calls by boto3 in a few threads, with deadlines and repeats, and with our own errors.

Every item has a partition key `pk` and a sort key `sk`. This is what they hold, and which package writes the item:

    pk                 sk                          what
    SATELLITE          ORG/NAME                    registry: owner, generation, machine
    TOKEN              NAME                        registry: a token's hash and grants
    TOKEN-HASH         sha256:…                    registry: whose hash that is, so that no two tokens share it
    CUT                NAME                        registry: a revoked token whose connections are cut
    ACCOUNT            ORG#…, KEY#…, REVOKED#…     registry: orgs, public keys of hosts, revoked rules and exchanges
    LAUNCHED           ORG/NAME                    registry: a satellite that LaunchSatellite has made
    LAUNCHED-COUNT     ORG                         registry: how many of these the org has
    USED-ID            …                           registry: the id of a CI token that was exchanged
    RESERVE            SIZE/PLATFORM/NUMBER        registry: a machine that no satellite has yet
    ROW#ORG/NAME       ROW                         coordination: turn, epoch, closing, hosts that have entered
    STAY               HOST/…                      coordination: a host's incarnation and its newest version
    FLEET              NAME                        which fleets use the table (it should be one)
    LIFE               HOST                        ledger: the run that writes for a host, its last heartbeat
    BOOKS#HOST         OPEN#ORG/NAME               ledger: a satellite's open interval as the host saw it
    BOOKS#HOST         PAST#END#NUMBER             ledger: closed intervals by their end, in microseconds
    ROLLED             STATE                       ledger: of which days there are sums, and which intervals are left
    SUMS#DAYS          DAY#ORG/NAME                ledger: a satellite's sums of so many days (1, 4, 16, 64), from DAY
    CONNECTION#TIME    ID                          records: what became of a connection; `expires` is its end

Every call can be repeated: it writes the same again, and its condition holds for its own outcome too. Reads are consistent.
Items have the service's low-level form ({"S": …}), which `text`, `number` and `strings` read.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import trio

from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.store.malformed import WORDS_CHARS, MalformedRow

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient
    from types_boto3_dynamodb.type_defs import (
        AttributeValueTypeDef,
        ConditionCheckTypeDef,
        DeleteTypeDef,
        PutTypeDef,
        TimeToLiveSpecificationTypeDef,
        TransactWriteItemTypeDef,
        WriteRequestTypeDef,
    )

    Item = Mapping[str, AttributeValueTypeDef]

T = TypeVar("T")

THREADS = 8
"""Calls at once. The service answers within some milliseconds, and no urgent task needs more than a few calls."""
CONNECT_TIMEOUT_S = 1.0
READ_TIMEOUT_S = 2.0
"""The service answers within tens of milliseconds. After a longer time, rule 5 of the coordination serves clients better."""
CALL_DEADLINE_S = 5.0
"""For a call with its repeats. boto3's own timeouts do not cover name look-ups, credentials, or a service that sends one
byte a second. A thread that hangs in one of these is left behind."""
DOUBTFUL_DEADLINE_S = 1.0
"""For a call after one that got no answer, until one is answered: a held client waits for two or three calls."""
ATTEMPTS = 3
RETRY_S = 0.05
"""Before the second attempt; doubled for each further attempt. Up to half of it is taken off at random."""
TRANSACTION_ITEMS = 25
"""The service takes 100. Smaller transactions are quicker, and less is written again when one fails."""

BATCH_ITEMS = 25
"""The service's limit for one BatchWriteItem."""
EXPIRES = "expires"
"""The attribute of items that the table removes: seconds since the epoch."""

_PASSING = {
    "InternalServerError",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ThrottlingException",
    "TransactionConflictException",
    "TransactionInProgressException",
}
_FAILED_CONDITION = "ConditionalCheckFailedException"
_CANCELLED = "TransactionCanceledException"


class ConditionFailed(Exception):
    """The condition of a write did not hold. `item` is what the table holds."""

    def __init__(self, item: Item) -> None:
        super().__init__("the condition did not hold")
        self.item = item


class Table:
    """A client of one table, made without I/O. boto3 finds a region and credentials in its own way if they are not given."""

    def __init__(self, name: str, *, region: str | None, endpoint: str | None) -> None:
        self.name = name
        self._region = region
        self._endpoint = endpoint
        self._client: DynamoDBClient | None = None
        self._doubtful = False
        self._limiter = trio.CapacityLimiter(THREADS)

    async def get(self, pk: str, sk: str) -> Item:
        """The item; an empty one if there is none. Raises StoreError."""
        found = await self._call(
            lambda client: client.get_item(TableName=self.name, Key=_key(pk, sk), ConsistentRead=True)
        )
        return found.get("Item", {})

    async def query(
        self,
        pk: str,
        *,
        at_least: str = "\0",
        below: str = "\U0010ffff",
        most: int | None = None,
        names: Sequence[str] = (),
    ) -> list[Item]:
        """All items of a partition whose sort keys lie in the span, in their order; `most` of them, if that is given.

        `names` are the attributes that are read, by default all. Raises StoreError.
        """
        found: list[Item] = []
        async with contextlib.aclosing(
            self.pages(pk, at_least=at_least, below=below, page_items=most, names=names)
        ) as pages:
            async for page in pages:
                found += page
                if most is not None and len(found) >= most:
                    break
        return found[:most]

    async def pages(
        self,
        pk: str,
        *,
        at_least: str = "\0",
        below: str = "\U0010ffff",
        page_items: int | None = None,
        names: Sequence[str] = (),
    ) -> AsyncGenerator[list[Item], None]:
        """As `query`, as many at once as the service gives (1 MB), or `page_items`. Raises StoreError."""
        optional: dict[str, object] = {} if page_items is None else {"Limit": page_items}
        if names:
            optional["ProjectionExpression"] = ", ".join(f"#{name}" for name in names)
            optional["ExpressionAttributeNames"] = _aliases(names)
        while True:
            page = await self._call(
                lambda client: client.query(
                    TableName=self.name,
                    KeyConditionExpression="pk = :pk AND sk BETWEEN :low AND :high",
                    ExpressionAttributeValues={":pk": {"S": pk}, ":low": {"S": at_least}, ":high": {"S": below}},
                    ConsistentRead=True,
                    **optional,  # type: ignore[arg-type]
                )
            )
            yield list(page["Items"])
            if not (start := page.get("LastEvaluatedKey", {})):
                return
            optional["ExclusiveStartKey"] = start

    async def update(
        self, pk: str, sk: str, change: str, values: Item, *, condition: str | None = None, names: Sequence[str] = ()
    ) -> Item:
        """Change an item, or make it. `names` are used in the expressions as #name. Returns the item after the change.

        Raises ConditionFailed, StoreError.
        """
        optional: dict[str, object] = {}
        if condition is not None:
            optional |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        if values:
            optional["ExpressionAttributeValues"] = values
        if names:
            optional["ExpressionAttributeNames"] = _aliases(names)
        done = await self._call(
            lambda client: client.update_item(
                TableName=self.name,
                Key=_key(pk, sk),
                UpdateExpression=change,
                ReturnValues="ALL_NEW",
                **optional,  # type: ignore[arg-type]
            )
        )
        return done.get("Attributes", {})

    async def delete(self, pk: str, sk: str, *, condition: str | None = None, values: Item | None = None) -> None:
        """Delete an item, if it is there. Raises ConditionFailed, StoreError."""
        optional: dict[str, object] = {}
        if condition is not None:
            optional = {
                "ConditionExpression": condition,
                "ExpressionAttributeValues": values or {},
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        await self._call(
            lambda client: client.delete_item(TableName=self.name, Key=_key(pk, sk), **optional)  # type: ignore[arg-type]
        )

    async def transact(self, writes: Sequence[TransactWriteItemTypeDef]) -> None:
        """Do all writes or none. Raises ConditionFailed with the item of the first that failed, StoreError."""
        await self._call(lambda client: client.transact_write_items(TransactItems=writes))

    def put(
        self, item: Item, *, condition: str | None = None, values: Item | None = None, names: Sequence[str] = ()
    ) -> TransactWriteItemTypeDef:
        """For `transact`: write the item, if the condition holds. `names` are used in the condition as #name."""
        put: PutTypeDef = {"TableName": self.name, "Item": item}
        if condition is not None:
            put["ConditionExpression"] = condition
        if values:
            put["ExpressionAttributeValues"] = values
        if names:
            put["ExpressionAttributeNames"] = _aliases(names)
        return {"Put": put}

    def remove(
        self, pk: str, sk: str, *, condition: str | None = None, values: Item | None = None
    ) -> TransactWriteItemTypeDef:
        """For `transact`: delete the item, if the condition holds."""
        delete: DeleteTypeDef = {"TableName": self.name, "Key": _key(pk, sk)}
        if condition is not None:
            delete["ConditionExpression"] = condition
            delete["ExpressionAttributeValues"] = values or {}
        return {"Delete": delete}

    def check(
        self, pk: str, sk: str, *, condition: str, values: Item, names: Sequence[str] = ()
    ) -> TransactWriteItemTypeDef:
        """For `transact`: write nothing, but fail unless the condition holds."""
        check: ConditionCheckTypeDef = {
            "TableName": self.name,
            "Key": _key(pk, sk),
            "ConditionExpression": condition,
            "ExpressionAttributeValues": values,
        }
        if names:
            check["ExpressionAttributeNames"] = _aliases(names)
        return {"ConditionCheck": check}

    async def put_all(self, items: Sequence[Item]) -> None:
        """Write items that no condition guards, BATCH_ITEMS in a call. Raises StoreError; some may be written then."""
        await self._write_all([{"PutRequest": {"Item": item}} for item in items])

    async def delete_all(self, items: Sequence[Item]) -> None:
        """Delete items, of which only the keys count, BATCH_ITEMS in a call. Raises StoreError; some may be gone then."""
        await self._write_all([{"DeleteRequest": {"Key": {"pk": item["pk"], "sk": item["sk"]}}} for item in items])

    async def _write_all(self, requests: Sequence[WriteRequestTypeDef]) -> None:
        for at in range(0, len(requests), BATCH_ITEMS):
            some = requests[at : at + BATCH_ITEMS]
            done = await self._call(
                lambda client, some=some: client.batch_write_item(RequestItems={self.name: some})  # type: ignore[misc]
            )
            if done.get("UnprocessedItems"):
                raise StoreError(f"DynamoDB table {self.name}: throttled")

    async def expires(self) -> bool:
        """Whether the table removes items whose time EXPIRES is over. Raises StoreError."""
        found = await self._call(lambda client: client.describe_time_to_live(TableName=self.name))
        told = found["TimeToLiveDescription"]
        return told.get("TimeToLiveStatus") in ("ENABLED", "ENABLING") and told.get("AttributeName") == EXPIRES

    async def create(self) -> bool:
        """Make the table, billed by request, and wait until it can be used. Returns False if it was there already.

        In either case its items expire from now on, by EXPIRES.
        """
        return await trio.to_thread.run_sync(self._use, self._create)

    def create_now(self) -> bool:
        """As `create`, blocking: for commands and tests."""
        return self._use(self._create)

    def _create(self, client: DynamoDBClient) -> bool:
        try:
            client.create_table(
                TableName=self.name,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[
                    {"AttributeName": "pk", "AttributeType": "S"},
                    {"AttributeName": "sk", "AttributeType": "S"},
                ],
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            )
            made = True
        except client.exceptions.ResourceInUseException:
            made = False
        client.get_waiter("table_exists").wait(TableName=self.name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        status = client.describe_time_to_live(TableName=self.name)["TimeToLiveDescription"].get("TimeToLiveStatus")
        if status not in ("ENABLED", "ENABLING"):
            expiry: TimeToLiveSpecificationTypeDef = {"Enabled": True, "AttributeName": EXPIRES}
            client.update_time_to_live(TableName=self.name, TimeToLiveSpecification=expiry)
        return made

    async def _call(self, use: Callable[[DynamoDBClient], T]) -> T:
        """Call in a thread. Passing errors are tried again here and nowhere else. Raises StoreError, ConditionFailed."""
        deadline_s = DOUBTFUL_DEADLINE_S if self._doubtful else CALL_DEADLINE_S
        with trio.move_on_after(deadline_s):
            try:
                answer = await self._repeat(use)
            except ConditionFailed:
                self._doubtful = False
                raise
            self._doubtful = False
            return answer
        self._doubtful = True
        raise StoreError(f"DynamoDB table {self.name}: no answer in time")

    async def _repeat(self, use: Callable[[DynamoDBClient], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return await trio.to_thread.run_sync(self._use, use, limiter=self._limiter, abandon_on_cancel=True)
            except (StoreUnusable, ConditionFailed):
                raise
            except Exception as exc:  # a StoreError, or no thread could be started
                if attempt + 1 == ATTEMPTS:
                    if isinstance(exc, StoreError):
                        raise
                    raise StoreError(f"DynamoDB table {self.name}: {type(exc).__name__}: {exc}") from exc
                await trio.sleep(RETRY_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("an attempt neither succeeds nor fails")

    def _use(self, use: Callable[[DynamoDBClient], T]) -> T:
        try:
            if self._client is None:
                self._client = self._connect()
            return use(self._client)
        except botocore.exceptions.ClientError as exc:
            raise self._typed(exc) from exc
        except botocore.exceptions.BotoCoreError as exc:
            passing = isinstance(exc, (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError))
            if not passing:
                self._client = None  # it would remember that it found no credentials or no region
            raise (StoreError if passing else StoreUnusable)(f"DynamoDB table {self.name}: {exc}") from exc
        except Exception as exc:  # botocore passes on what files, programs and threads raise
            self._client = None
            raise StoreError(f"DynamoDB table {self.name}: {type(exc).__name__}: {exc}") from exc

    def _connect(self) -> DynamoDBClient:
        return boto3.session.Session().client(
            "dynamodb",
            region_name=self._region,
            endpoint_url=self._endpoint,
            config=botocore.config.Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                max_pool_connections=THREADS,
                retries={"total_max_attempts": 1},
            ),
        )

    def _typed(self, exc: botocore.exceptions.ClientError) -> Exception:
        error = exc.response.get("Error", {})
        code, words = error.get("Code", ""), f"DynamoDB table {self.name}: {exc}"
        if code == _FAILED_CONDITION:
            return ConditionFailed(_item(exc.response.get("Item")))
        if code == _CANCELLED:
            reasons = exc.response.get("CancellationReasons", [])
            for reason in reasons:
                if reason.get("Code") == "ConditionalCheckFailed":
                    return ConditionFailed(_item(reason.get("Item")))
            codes = {str(reason.get("Code")) for reason in reasons} - {"None"}
            passing = codes <= {"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}
            return (StoreError if passing else StoreUnusable)(words)
        if code == "ResourceNotFoundException":
            return StoreUnusable(f"there is no DynamoDB table {self.name}: `bentpipe store init` makes it")
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (StoreError if code in _PASSING or status >= 500 else StoreUnusable)(words)


def text(item: Item, name: str) -> str:
    """A text attribute; "" if there is none."""
    return item.get(name, {}).get("S", "")


def number(item: Item, name: str) -> int:
    """A whole number; 0 if there is none. Raises MalformedRow if it is anything else."""
    if name not in item:
        return 0
    try:
        return int(item[name]["N"])
    except (KeyError, ValueError) as exc:
        raise MalformedRow(f"{name} is not a whole number: {item[name]}"[:WORDS_CHARS]) from exc


def given(item: Item, name: str) -> str:
    """A text attribute that must be there. Raises MalformedRow."""
    found = item.get(name, {})
    if "S" not in found:
        raise MalformedRow(f"{name} is not text: {found or 'it is missing'}"[:WORDS_CHARS])
    return found["S"]


def given_number(item: Item, name: str) -> int:
    """A whole number that must be there. Raises MalformedRow."""
    if name not in item:
        raise MalformedRow(f"{name} is missing")
    return number(item, name)


def key_of(item: Item) -> str:
    """An item's keys, for the log."""
    return f"{text(item, 'pk')} {text(item, 'sk')}"


def strings(item: Item, name: str) -> frozenset[str]:
    """A set of strings; an empty one if there is none."""
    return frozenset(item.get(name, {}).get("SS", ()))


def _item(found: object) -> Item:
    return found if isinstance(found, dict) else {}


def _aliases(names: Sequence[str]) -> dict[str, str]:
    """For attributes whose names are reserved words of DynamoDB's expressions."""
    return {f"#{name}": name for name in names}


def _key(pk: str, sk: str) -> dict[str, AttributeValueTypeDef]:
    return {"pk": {"S": pk}, "sk": {"S": sk}}
