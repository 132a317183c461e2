"""The limits of quotas, as `quotas.py` needs them."""

import dataclasses

from bentpipe.config.limits import LimitsSection


@dataclasses.dataclass(frozen=True, slots=True)
class QuotaLimits:
    """The configuration's limits as the quotas need them: numbers of places, and bytes."""

    strangers: int
    strangers_bytes: int
    per_prefix: int
    admitted: int
    per_principal: int | None = None
    per_satellite: int | None = None
    said_bytes: int = 0
    said_bytes_per_principal: int | None = None


def quota_limits_of(section: LimitsSection, connections: int) -> QuotaLimits:
    """Take the limits from the configuration; `connections` is `max_connections`, or what the descriptors allow."""
    section = section.model_copy(update={"max_connections": connections})
    strangers = max(1, min(section.places_for_strangers, connections - 1))
    return QuotaLimits(
        strangers=strangers,
        strangers_bytes=section.bytes_for_strangers,
        per_prefix=min(section.max_connections_per_address, strangers),
        admitted=max(1, connections - strangers),
        per_principal=section.max_connections_per_principal,
        per_satellite=section.max_connections_per_satellite,
        said_bytes=section.held_bytes,
        said_bytes_per_principal=section.held_bytes_per_principal,
    )
