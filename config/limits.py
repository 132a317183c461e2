"""Limits on clients: how many connections, how much memory, how long."""

from typing import Self

from pydantic import Field, model_validator

from bentpipe.config.base import DurationS, Section, SizeBytes

STRANGERS_PART, STRANGERS_LEAST = 8, 8
"""By default one connection in this many may be a stranger's, and at least this many."""
STRANGER_BYTES = 64 << 10
"""By default the memory that strangers may hold for each of their places: TLS, a task, and an opening of some KiB."""


class LimitsSection(Section):
    """Limits on clients. If a limit is reached, the client is told if possible, and the event is counted and logged.

    A stranger is a connection that has shown no token and no known certificate yet, or that only asks for health.
    """

    max_connections: int = Field(default=10_000, ge=2)
    """All connections: those of strangers, and those with a token. If it is not given and the process has too few
    descriptors, as many as fit."""
    max_strangers: int | None = Field(default=None, ge=1)
    """Of these; by default an eighth. When all are taken, the oldest stranger of the most crowded address makes room."""
    max_connections_per_address: int = Field(default=2_000, ge=1)
    """Strangers of one IPv4 address or one IPv6 /64. Clients that have shown a token are not counted by address."""
    max_connections_per_principal: int | None = Field(default=None, ge=1)
    """By default what others leave of the rest. A share of it is kept for each principal."""
    max_connections_per_satellite: int | None = Field(default=None, ge=1)
    max_held_per_satellite: int = Field(default=5_000, ge=1)
    max_held: int = Field(default=10_000, ge=1)
    """Clients held for satellites, in all."""
    max_held_per_principal: int | None = Field(default=None, ge=1)
    """By default all that others do not want. If a principal has less than its fair share, its client is held, and the
    newest client of the principal that has the most is refused instead."""
    max_launched_per_org: int = Field(default=50, ge=0)
    """Satellites that LaunchSatellite has made, of one org."""
    max_registered_per_org: int = Field(default=50, ge=0)
    """Satellites that have registered themselves, of one org."""
    held_bytes: SizeBytes = Field(default=256 << 20, ge=0)
    """What all clients with a token together may have sent before their hand-off. Beyond it, a client with more than a few
    KiB is refused if its principal has its fair share already. proto/limits.py bounds each single client."""
    held_bytes_per_principal: SizeBytes | None = Field(default=None, ge=0)
    stranger_bytes: SizeBytes | None = Field(default=None, ge=0)
    """All memory that strangers may hold; by default 64 KiB for each of their places."""
    stranger_age_s: DurationS = Field(default=600.0, gt=0, alias="stranger_age")
    """How long a connection that only asks for health may last, or one without a request at a listener with the API; its
    client is told to open another."""
    greeting_deadline_s: DurationS = Field(default=10.0, gt=0, alias="greeting_deadline")
    """From accept to the first complete request, TLS handshake included. At a listener with the API, HTTP/2 that has said
    nothing of a request may stay for longer: see `stranger_age`."""

    @model_validator(mode="after")
    def _leave_some(self) -> Self:
        if self.places_for_strangers >= self.max_connections:
            raise ValueError("max_strangers must be less than max_connections, or no client with a token could connect")
        return self

    @property
    def places_for_strangers(self) -> int:
        """`max_strangers`, or its default."""
        if self.max_strangers is not None:
            return self.max_strangers
        return min(max(self.max_connections // STRANGERS_PART, STRANGERS_LEAST), self.max_connections // 2)

    @property
    def bytes_for_strangers(self) -> int:
        """`stranger_bytes`, or its default."""
        return self.places_for_strangers * STRANGER_BYTES if self.stranger_bytes is None else self.stranger_bytes
