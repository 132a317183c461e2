"""Rows in memory: the reference that `rows_contract` holds the real ones to, and the simulation's store."""

import dataclasses

from bentpipe.daemon.coordination.rows import Row, Written
from bentpipe.daemon.model import SatelliteKey


class MemoryRows:
    def __init__(self) -> None:
        self.rows: dict[SatelliteKey, Row] = {}
        self.hosts: dict[str, str] = {}

    async def read(self, key: SatelliteKey) -> Row:
        return self.rows.get(key, Row())

    async def take(self, key: SatelliteKey, *, owner: str, seen: str, version: str) -> Written:
        row = await self.read(key)
        return self._step(
            key,
            row.version == seen,
            dataclasses.replace(row, owner=owner, version=version, epoch=row.epoch + 1, closing=False),
        )

    async def renew(self, key: SatelliteKey, *, seen: str, version: str) -> Written:
        row = await self.read(key)
        return self._step(key, row.version == seen, dataclasses.replace(row, version=version))

    async def close(self, key: SatelliteKey, *, seen: str, version: str, stay: str) -> Written:
        row = await self.read(key)
        after = dataclasses.replace(row, version=version, closing=True, stays=frozenset())
        return self._step(key, row.version == seen and row.stays <= {stay}, after)

    async def release(self, key: SatelliteKey, *, seen: str) -> Written:
        row = await self.read(key)
        return self._step(key, row.version == seen, dataclasses.replace(row, owner="", version="", closing=False))

    async def enter(self, key: SatelliteKey, stay: str) -> Written:
        row = await self.read(key)
        return self._step(key, not row.closing, dataclasses.replace(row, stays=row.stays | {stay}))

    async def leave(self, key: SatelliteKey, stays: frozenset[str]) -> None:
        row = await self.read(key)
        self._step(key, True, dataclasses.replace(row, stays=row.stays - stays))

    async def begin_stay(self, stay: str, version: str) -> None:
        self.hosts[stay] = version

    async def beat(self, stay: str, version: str) -> bool:
        if stay in self.hosts:
            self.hosts[stay] = version
        return stay in self.hosts

    async def stays(self) -> dict[str, str]:
        return dict(self.hosts)

    async def bury(self, stay: str, seen: str) -> bool:
        if self.hosts.get(stay) == seen:
            del self.hosts[stay]
        return stay not in self.hosts

    def _step(self, key: SatelliteKey, holds: bool, after: Row) -> Written:
        if holds:
            self.rows[key] = after
        return Written(holds, self.rows.get(key, Row()))
