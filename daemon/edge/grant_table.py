"""The tokens that data planes may admit clients by, as records. Sessions, certificates and CI jobs are not among them."""

import math

from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.accounts.principal import Principal
from bentpipe.daemon.planes.bounds import CREDENTIALS_BYTES, GRANTED_TOKENS, GRANTS_BYTES, NAME_BYTES
from bentpipe.daemon.planes.records import LINK_ID
from bentpipe.daemon.planes.snapshots import GrantRecord


def grant_records(admission: Admission) -> list[GrantRecord]:
    """One for each token that may use a satellite and that fits its record; GRANTED_TOKENS at most."""
    found = (_record(digest, principal, admission) for digest, principal in admission.tokens().items())
    return [record for record in found if record is not None][:GRANTED_TOKENS]


def _record(digest: bytes, principal: Principal, admission: Admission) -> GrantRecord | None:
    usable = [grant for grant in principal.grants if admission.may(principal, Scope.USE, grant.org, None)]
    grants = "\n".join(map(str, usable))
    credentials = "\n".join(principal.credentials)
    fits = len(grants.encode()) <= GRANTS_BYTES and len(credentials.encode()) <= CREDENTIALS_BYTES
    if not usable or not fits or len(principal.name.encode()) > NAME_BYTES:
        return None
    expires_us = 0 if math.isinf(principal.expires_at) else max(1, int(principal.expires_at * 1e6))
    return GrantRecord(LINK_ID, expires_us, digest, principal.name, grants, credentials)
