"""A satellite's machine on EC2: which instance it is, or how one is launched, also if EC2 has no capacity for the first."""

from typing import Literal, Self

from pydantic import Field, model_validator

from bentpipe.config.base import Section

MOST_ALTERNATIVES = 20
"""Of one machine type. A launch that is refused by all of them takes a call for each, at `rates.launch`."""


class AlternativeSection(Section):
    """One way to launch a machine. What it does not say is as in the section around it, or as in the template."""

    instance_type: str | None = Field(default=None, pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")
    zone: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$")
    """An availability zone, in whose default subnet it is launched."""
    subnet: str | None = Field(default=None, pattern=r"^subnet-[0-9a-f]{8,17}$")
    """A subnet, and with it a zone."""
    spot: bool = False
    """A Spot Instance, by a persistent request. If EC2 interrupts it, it sleeps."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.zone is not None and self.subnet is not None:
            raise ValueError("give zone or subnet, not both: a subnet is in one zone")
        return self


class SatelliteEc2Section(Section):
    """A satellite that is an EC2 instance: a given one, one that is launched from a template, or one found by tags."""

    instance_id: str | None = Field(default=None, pattern=r"^i-[0-9a-f]{8,17}$")
    """Without it the instance is the one with the tags `bentpipe:fleet` and `bentpipe:satellite` = "ORG/NAME"."""
    launch_template: str | None = Field(default=None, min_length=1)
    """Id (lt-…) or name of the template for launching the satellite if there is no instance."""
    launch_template_version: str = Field(default="$Default", pattern=r"^(\$Default|\$Latest|[1-9][0-9]*)$")
    instance_type: str | None = Field(default=None, pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")
    """By default the template's."""
    hibernation: bool = True
    """Launch it so that it can hibernate, if its type can. EC2 does not allow changing that later."""
    port: int = Field(default=8372, ge=1, le=65535)
    address: Literal["private", "public", "ipv6"] = "private"
    """A private address stays the same over a sleep. A public one changes with every start unless it is elastic."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.instance_id is not None and self.launch_template is not None:
            raise ValueError("give instance_id or launch_template, not both")
        return self


class MachineTypeEc2Section(SatelliteEc2Section):
    """The same for a machine type. The store remembers which alternative was tried, and machine types have a store."""

    alternative: tuple[AlternativeSection, ...] = Field(default=(), max_length=MOST_ALTERNATIVES)
    """Tried in this order, if EC2 has no capacity. Without any, the section itself is the only one."""
    change_type: bool = False
    """If there is no capacity for a machine that exists, it gets the type of another alternative."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.alternative)) < len(self.alternative):
            raise ValueError("an alternative stands twice")
        return self
