"""What the daemon tells of its work: the records of connections, metrics and traces."""

from typing import Annotated, Self

from pydantic import AnyHttpUrl, Field, UrlConstraints, model_validator

from bentpipe.config.base import DurationS, ListenAddress, Section


class RecordsSection(Section):
    """The records of connections, for `bentpipe why`. The log has a line for each in any case."""

    keep: int = Field(default=100_000, ge=0, le=10_000_000)
    """In SQLite: so many of the newest are kept, of some 700 bytes each; 0: none. DynamoDB bounds by `keep_for` alone."""
    keep_for_s: DurationS = Field(default=30 * 86_400.0, gt=0, alias="keep_for")
    probes: bool = True
    """Whether a peer that leaves before its first request has a record and a line, as a load balancer's health checks do
    each second. They are counted in any case."""


class MetricsSection(Section):
    """Where Prometheus may scrape, and what it gets. Anybody who can connect may read."""

    address: ListenAddress | None = None
    """None: nowhere."""
    per_satellite: bool = False
    """Whether connections, holds and bytes are told of each satellite, too: of 500, and of all others together."""
    per_org: bool = False
    """The same for each org."""


class TracesSection(Section):
    """Where traces of connections are sent by OTLP over HTTP. It needs the extra `bentpipe[traces]`."""

    endpoint: Annotated[AnyHttpUrl, UrlConstraints(max_length=2_000)] | None = None
    """A collector's URL for traces, such as http://127.0.0.1:4318/v1/traces. None: there are no traces. Fields of the
    request (a key, say) are in the environment, OTEL_EXPORTER_OTLP_HEADERS."""
    ratio: float = Field(default=1.0, ge=0, le=1)
    """The share of connections that is traced, of those whose client has not decided it by its `traceparent`."""

    @model_validator(mode="after")
    def _has_no_secret(self) -> Self:
        if self.endpoint is not None and (self.endpoint.username or self.endpoint.password):
            raise ValueError("endpoint has a user or a password: give them in OTEL_EXPORTER_OTLP_HEADERS")
        return self
