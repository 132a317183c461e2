"""Machines that register themselves as satellites by the API: where they may be, and when they count as offline."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from bentpipe.config.base import DurationS, Section
from bentpipe.config.units import Network, parse_networks


class RegistrationSection(Section):
    """Registered satellites. Without this section no machine may register."""

    networks: Annotated[tuple[Network, ...], BeforeValidator(parse_networks)]
    """The addresses that may be registered. There is no default, since the daemon connects to them. Addresses of this host
    itself (127.0.0.1, ::1) need a network that has nothing else; link-local and multicast addresses are never allowed."""
    plaintext: bool = False
    """Whether a satellite may register without an authority for its certificate. Its address then counts as its own for 15
    seconds after each heartbeat, and nothing else proves who answers there."""
    offline_after_s: DurationS = Field(default=45.0, ge=3.0, alias="offline_after")
    """Without a heartbeat for this long a satellite is OFFLINE. Three heartbeats should fit."""
    forget_after_s: DurationS = Field(default=7 * 86_400.0, ge=60.0, alias="forget_after")
    """An offline satellite is deregistered after this time."""
