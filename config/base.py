"""The base class of all sections of the configuration, and the types that several sections use."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bentpipe.config.units import parse_address, parse_duration_s, parse_size_bytes

DurationS = Annotated[float, BeforeValidator(parse_duration_s)]
"""Seconds; in the file a string with a unit ("90s", "30m", "1h30m") or a bare number of seconds."""

SizeBytes = Annotated[int, BeforeValidator(parse_size_bytes)]
"""Bytes; in the file a string with a unit ("512KiB", "256MiB") or a bare number of bytes."""

ListenAddress = Annotated[tuple[str, int], BeforeValidator(parse_address)]
"""(IP address, port) from "127.0.0.1:8372", "[::1]:8372" or ":8372" (all addresses, both families)."""

HOST_PORT_PATTERN = r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}$"
"""A name, an IPv4 address, or an IPv6 address in brackets, and a port."""

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"
"""Names of orgs and satellites. They fit a DNS label, a metadata value and a cgroup's folder."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Section(BaseModel):
    """Base of every section: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
