"""The contract of a store of records: every implementation runs these cases."""

import dataclasses
from collections.abc import Callable, Mapping

from bentpipe.daemon.records.contract import FIELD_CHARS, RecordStore, StoredRecord
from bentpipe.daemon.records.ids import EPOCH_S, IdMaker


@dataclasses.dataclass
class Wall:
    """The clock of a test: seconds since the epoch."""

    now_s: float = EPOCH_S + 50_000_000.0


class RecordContract:
    """A subclass gives `opened`: how another host opens the same store, with the test's clock."""

    def stored(self, wall: Wall, satellite: str = "acme/sat", principal: str = "ci", **fields: object) -> StoredRecord:
        made = IdMaker("edge-1", lambda: wall.now_s).make()
        told: Mapping[str, object] = {
            "id": made,
            "satellite": satellite,
            "principal": principal,
            "up_bytes": 7,
            **fields,
        }
        return StoredRecord(made, int(wall.now_s * 1e6), "edge-1", satellite, principal, told)

    async def test_a_record_is_found_by_its_id_on_every_host(
        self, opened: Callable[[], RecordStore], wall: Wall
    ) -> None:
        record = self.stored(wall)
        await opened().add([record])
        assert await opened().find(record.id) == record

    async def test_no_record_is_found_of_an_unknown_id(self, opened: Callable[[], RecordStore], wall: Wall) -> None:
        store = opened()
        await store.add([self.stored(wall)])
        assert await store.find(self.stored(wall).id) is None

    async def test_writing_again_changes_nothing(self, opened: Callable[[], RecordStore], wall: Wall) -> None:
        store, records = opened(), [self.stored(wall) for _ in range(60)]
        await store.add(records)
        await store.add(records[:3])
        assert len(await store.newest(100)) == 60

    async def test_the_newest_come_first(self, opened: Callable[[], RecordStore], wall: Wall) -> None:
        store, records = opened(), []
        for _ in range(5):
            wall.now_s += 1_000
            records.append(self.stored(wall))
            await store.add(records[-1:])
        assert await store.newest(3) == records[:1:-1]

    async def test_only_those_of_a_satellite_or_a_principal(
        self, opened: Callable[[], RecordStore], wall: Wall
    ) -> None:
        store = opened()
        mine, theirs = self.stored(wall), self.stored(wall, "acme/other", "dev")
        await store.add([mine, theirs])
        assert await store.newest(9, satellite="acme/other") == [theirs]
        assert await store.newest(9, principal="ci") == [mine]
        assert await store.newest(9, satellite="acme/other", principal="ci") == []

    async def test_long_fields_are_cut(self, opened: Callable[[], RecordStore], wall: Wall) -> None:
        store, record = opened(), self.stored(wall, error="é" * 5_000)
        await store.add([record])
        found = await store.find(record.id)
        assert found is not None
        assert found.fields["error"] == "é" * FIELD_CHARS
