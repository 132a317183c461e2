"""The daemon's own certificate authority for satellites, which gives each machine a certificate: [satellite_ca]."""

from pathlib import Path

from pydantic import Field

from bentpipe.config.base import HOST_PORT_PATTERN, DurationS, ListenAddress, Section


class SatelliteCaSection(Section):
    """The authority, and where machines ask it for certificates. For satellites that have `issued = true` under tls."""

    address: ListenAddress
    """Where the daemon listens for machines that enrol. Only machines of the fleet need to reach it."""
    machines_call: str = Field(pattern=HOST_PORT_PATTERN)
    """HOST:PORT of that listener as the machines reach it. It is in their user data."""
    file: Path | None = None
    """The authority's key and certificates, which `bentpipe ca new` makes. Hosts that share a store need the same file. By
    default the daemon makes one in its state directory."""
    machine_life_s: DurationS = Field(default=90 * 86_400.0, ge=60, alias="machine_life")
    """How long a machine's certificate is valid. The machine gets the next one after a third of this. buildkitd reads its
    certificate only when it starts. EC2 keeps a hibernated machine for 60 days, and then it must still be valid."""
    token_life_s: DurationS = Field(default=3600.0, ge=1, alias="token_life")
    """How long a machine that was launched may take to get its first certificate."""
