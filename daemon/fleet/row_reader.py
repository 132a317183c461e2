"""Reads the satellites of a store again and again. A store that cannot be read is logged once, until it can be."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey

log = logging.getLogger("bentpipe.fleet")


class Keyed(Protocol):
    """A satellite's row."""

    @property
    def key(self) -> SatelliteKey:
        """Whose row it is."""
        ...


R = TypeVar("R", bound=Keyed)


class RowReader(Generic[R]):
    """One kind of rows; `what` completes "cannot read the …"."""

    def __init__(self, satellites: Callable[[], Awaitable[Iterable[R]]], what: str) -> None:
        self._satellites = satellites
        self._what = what
        self._failed = False

    async def read(self) -> dict[SatelliteKey, R] | None:
        """Read all rows; None if the store cannot be read now."""
        try:
            rows = {row.key: row for row in await self._satellites()}
        except StoreError as exc:
            if not self._failed:
                log.error(f"cannot read the {self._what}", extra={"fields": {"error": str(exc)}})
            self._failed = True
            return None
        self._failed = False
        return rows
