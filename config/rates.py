"""The rates of calls that the configuration allows."""

from pydantic import Field

from bentpipe.config.base import Section


class RateSection(Section):
    """A token bucket: how many calls at once, and how many a second in the long run."""

    burst: float = Field(ge=1)
    per_s: float = Field(gt=0)


class Ec2RatesSection(Section):
    """Calls of EC2's API that one daemon makes at most.

    By default half of what AWS grants an account in a region ("Request throttling for the Amazon EC2 API"), because the
    buckets are shared with everything else in the account. Many satellites are started by one call, so that a low rate is
    enough.
    """

    describe: RateSection = RateSection(burst=50, per_s=10)
    start: RateSection = RateSection(burst=2, per_s=1)
    stop: RateSection = RateSection(burst=25, per_s=2.5)
    launch: RateSection = RateSection(burst=2, per_s=1)
    terminate: RateSection = RateSection(burst=25, per_s=2.5)
