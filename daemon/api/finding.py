"""Which satellite a call is about, and whether its caller may do that. The same words for every service of the API."""

import re
from typing import Protocol

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.accounts.contract import Access, Scope
from bentpipe.daemon.errors import SATELLITE_WORDS, InvalidRequest, NoSuchSatellite, NotPermitted
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey

NAME = re.compile(NAME_PATTERN)
NOT_PERMITTED = "this credential may use the satellite, but not manage it: that takes the scope `manage`"


class Named(Protocol):
    """A request about one satellite."""

    @property
    def org_id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102


def find_satellite(fleet: Fleet, access: Access, request: Named, scope: Scope) -> Satellite:
    """Find a satellite for a caller. Raises InvalidRequest, NoSuchSatellite, NotPermitted.

    One that is not the caller's and one that does not exist have one answer.
    """
    key = SatelliteKey(check_name(request.org_id, "org_id"), check_name(request.name, "name"))
    if not access.may(Scope.USE, key.org, key.name):
        raise NoSuchSatellite(f"{access.name} may not use {key}", peer_hint=SATELLITE_WORDS)
    satellite = fleet.get(key)
    if not access.may(scope, key.org, key.name):
        raise NotPermitted(NOT_PERMITTED)
    return satellite


def satellites_of(fleet: Fleet, access: Access, org_id: str) -> list[Satellite]:
    """The satellites of an org that a caller may use, by name. Raises InvalidRequest."""
    org = check_name(org_id, "org_id")
    found = [
        satellite
        for satellite in fleet.satellites
        if satellite.key.org == org and access.may(Scope.USE, org, satellite.key.name)
    ]
    return sorted(found, key=lambda satellite: satellite.key.name)


def check_name(value: str, field: str) -> str:
    """Check the name of an org or a satellite. Raises InvalidRequest."""
    if not value:
        raise InvalidRequest(f"{field} is missing")
    if not NAME.fullmatch(value):
        raise InvalidRequest(f"{field} is malformed: letters, digits, '.', '_' and '-', 64 at most")
    return value
