"""By which certificate each satellite is known, if the daemon's own authority issues it. It keeps the edge's table right.

The table says at each moment which machine is a satellite's: the one that has enrolled last. Another host may have enrolled
it, so the store is read again and again. No satellite of this kind is ever dialled in plaintext: while its machine is not
known, its entry refuses.
"""

import logging
from collections.abc import Callable

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.trust_material import TrustMaterial
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import MachineName, pem_of, private_pem_of
from bentpipe.daemon.pki.authority_keeper import Signing
from bentpipe.daemon.pki.rules import is_enrolled
from bentpipe.daemon.registry.identities import IdentityStore, StoredIdentity
from bentpipe.native.engine import Ktls

log = logging.getLogger("bentpipe.pki")

NOT_ENROLLED = (
    "no machine of the satellite has its certificate yet: see the log of bentpipe-enrol.service on the machine"
)


TRUST = "issued"
"""What a data plane of its own calls the authority and the daemon's certificate."""


class IssuedTls:
    """Keeps `table` for the satellites in it. `signing` and `trusted` are the authority's, as PEM for the latter."""

    def __init__(
        self,
        table: dict[SatelliteKey, SatelliteTls],
        store: IdentityStore,
        fleet: str,
        ktls: Ktls,
        *,
        signing: Callable[[], Signing],
        trusted: Callable[[], str],
    ) -> None:
        self._table = table
        self._store = store
        self._fleet = fleet
        self._ktls = ktls
        self._signing = signing
        self._trusted = trusted
        self._satellites: set[SatelliteKey] = set()
        self._rows: dict[SatelliteKey, StoredIdentity] = {}
        self._taken: set[SatelliteKey] = set()
        self._failing = ""
        self._material = self._make_material()
        self._context = self._material.make_context(ktls)

    def add(self, key: SatelliteKey) -> None:
        """The satellite's machines have certificates of the authority."""
        self._satellites.add(key)
        self._enter(key)

    def forget(self, key: SatelliteKey) -> None:
        """The satellite is gone."""
        self._satellites.discard(key)
        self._table.pop(key, None)

    def has(self, key: SatelliteKey) -> bool:
        """Whether its machines have certificates of the authority."""
        return key in self._satellites

    def take(self, row: StoredIdentity) -> None:
        """This host has changed a row."""
        self._taken.add(row.key)
        self._rows[row.key] = row
        self._enter(row.key)

    def waiting(self) -> list[SatelliteKey]:
        """The satellites whose newest machine has not enrolled yet."""
        rows = [row for key in self._satellites if (row := self._rows.get(key)) is not None]
        return [row.key for row in rows if not is_enrolled(row)]

    def renew_context(self) -> None:
        """The authority, what it trusts, or the daemon's own certificate is another one."""
        self._material = self._make_material()
        self._context = self._material.make_context(self._ktls)
        for key in self._satellites:
            self._enter(key)

    async def refresh(self) -> None:
        """Follow the store. While it cannot be read, what was known last counts."""
        self._taken.clear()
        try:
            rows = {row.key: row for row in await self._store.identities()}
        except StoreError as exc:
            if str(exc) != self._failing:
                log.error("the machines' identities cannot be read", extra={"fields": {"error": str(exc)}})
            self._failing = str(exc)
            return
        self._failing = ""
        # What this host has written meanwhile may be newer than what was read.
        rows |= {key: self._rows[key] for key in self._taken}
        changed = [key for key in self._satellites if rows.get(key) != self._rows.get(key)]
        self._rows = rows
        if self._trusted() != self._material.authorities:
            self.renew_context()
            return
        for key in changed:
            self._enter(key)

    def _enter(self, key: SatelliteKey) -> None:
        row = self._rows.get(key)
        known = self._table.get(key)
        if row is None or row.enrolled is None:
            made = SatelliteTls(self._context, refused=NOT_ENROLLED)
        else:
            name = MachineName(self._fleet, key, row.enrolled.launch).dns
            made = SatelliteTls(self._context, name, trust=TRUST, material=self._material)
        if made != known:
            self._table[key] = made

    def _make_material(self) -> TrustMaterial:
        signing = self._signing()
        shown = pem_of([signing.certificate, *signing.authority.chain])
        return TrustMaterial(self._trusted(), shown, private_pem_of(signing.key))
