"""The price table of the configuration: what satellites cost, for the report."""

from pydantic import Field

from bentpipe.config.base import DurationS, Section


class PriceSection(Section):
    """What a satellite's machine costs, in the currency of [prices]."""

    awake_hour: float = Field(default=0.0, ge=0)
    """The price of an hour awake, waking or going to sleep."""
    always_hour: float = Field(default=0.0, ge=0)
    """The price of any hour, awake or asleep: disk, address."""


class PricesSection(PriceSection):
    """The price table: for all satellites, and for some of them."""

    currency: str = Field(default="USD", min_length=1, max_length=8)
    minimum_s: DurationS = Field(default=0.0, ge=0, alias="minimum")
    """The least time that a wake is billed for; EC2: 60 s."""
    satellite: dict[str, PriceSection] = Field(default_factory=dict)
    """By "ORG/NAME", or "ORG/*" for a whole org."""

    def of(self, org: str, name: str) -> PriceSection:
        """The satellite's own prices, or those of its org, or those for all."""
        return self.satellite.get(f"{org}/{name}") or self.satellite.get(f"{org}/*") or self
