"""Looks at the settings for EC2 without a call to the cloud, except for credentials of the instance's own role."""

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bentpipe.config.model import Config
from bentpipe.daemon.service.concern import Concern

if TYPE_CHECKING:
    import boto3


def ec2_concerns(config: Config) -> Iterator[Concern]:
    """Whether there is a region that exists, and whether boto3 finds credentials."""
    uses_ec2 = any(machine.ec2 is not None for machine in config.machines)
    uses_table = config.store.kind == "dynamodb"
    if not uses_ec2 and not uses_table:
        return
    import boto3  # imported here: it costs a third of a second, which other configurations need not pay
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        if uses_ec2:
            yield from _region_concerns(session, "ec2", config.ec2.region, config.ec2.endpoint)
        if uses_table:
            yield from _region_concerns(session, "dynamodb", config.store.region, config.store.endpoint)
        if session.get_credentials() is None:
            words = (
                "no AWS credentials are found: environment, ~/.aws, or the role of this instance (IAM instance profile)"
            )
            yield Concern("ec2" if uses_ec2 else "store", words, fatal=False)
    except BotoCoreError as exc:
        yield Concern("ec2" if uses_ec2 else "store", f"AWS settings cannot be used: {exc}", fatal=False)


def _region_concerns(
    session: "boto3.Session", service: str, configured: str | None, endpoint: str | None
) -> Iterator[Concern]:
    where = "ec2.region" if service == "ec2" else "store.region"
    region = configured or session.region_name or ""
    if not region:
        words = "no region: set it here, or AWS_DEFAULT_REGION in the daemon's environment"
        yield Concern(where, words, fatal=True)
        return
    if endpoint is not None:
        return  # an emulator or a private endpoint may have regions of its own
    known = sorted(
        name
        for partition in session.get_available_partitions()
        for name in session.get_available_regions(service, partition_name=partition)
    )
    if region not in known:
        near = difflib.get_close_matches(region, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield Concern(where, f"{region!r} is not a region of AWS that this boto3 knows{hint}", fatal=False)
