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

    async def close(self, key: SatelliteKey, *, seen: str, version: str, incarnation: str) -> Written:
        row = await self.read(key)
        after = dataclasses.replace(row, version=version, closing=True, entered=frozenset())
        return self._step(key, row.version == seen and row.entered <= {incarnation}, after)

    async def release(self, key: SatelliteKey, *, seen: str) -> Written:
        row = await self.read(key)
        return self._step(key, row.version == seen, dataclasses.replace(row, owner="", version="", closing=False))

    async def enter(self, key: SatelliteKey, incarnation: str) -> Written:
        row = await self.read(key)
        return self._step(key, not row.closing, dataclasses.replace(row, entered=row.entered | {incarnation}))

    async def leave(self, key: SatelliteKey, incarnations: frozenset[str]) -> None:
        row = await self.read(key)
        self._step(key, True, dataclasses.replace(row, entered=row.entered - incarnations))

    async def begin_incarnation(self, incarnation: str, version: str) -> None:
        self.hosts[incarnation] = version

    async def beat(self, incarnation: str, version: str) -> bool:
        if incarnation in self.hosts:
            self.hosts[incarnation] = version
        return incarnation in self.hosts

    async def incarnations(self) -> dict[str, str]:
        return dict(self.hosts)

    async def expire(self, incarnation: str, seen: str) -> bool:
        if self.hosts.get(incarnation) == seen:
            del self.hosts[incarnation]
        return incarnation not in self.hosts

    def _step(self, key: SatelliteKey, holds: bool, after: Row) -> Written:
        if holds:
            self.rows[key] = after
        return Written(holds, self.rows.get(key, Row()))
