"""Every call of EC2's API: boto3 in a few worker threads, each API under its own limiter, failures read, calls counted.

It must never know a satellite. There is one policy of repetition: a call without an answer is made once more here, since all
calls are idempotent (RunInstances by its token). The fleet decides about all other repeats. boto3's own retries are off:
they would bypass the limiters.
"""

import base64
import collections
import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from bentpipe.config.model import Ec2Section
from bentpipe.config.rates import Ec2RatesSection, RateSection
from bentpipe.daemon.providers.ec2.client import ClientSource
from bentpipe.daemon.providers.ec2.errors import UNANSWERED, FailureKind, failure_of
from bentpipe.daemon.providers.ec2.limiter import Limiter

if TYPE_CHECKING:  # types-boto3 is only for the type checker
    from types_boto3_ec2 import EC2Client
    from types_boto3_ec2.literals import InstanceTypeType
    from types_boto3_ec2.type_defs import (
        FilterTypeDef,
        InstanceStateChangeTypeDef,
        InstanceTypeDef,
        ResponseLaunchTemplateDataTypeDef,
        RunInstancesRequestTypeDef,
        TagTypeDef,
    )

T = TypeVar("T")

THREADS = 4
"""One thread each for describe, start, stop and launch. More threads would only wait for tokens."""
ATTEMPTS = 2
PAGE = 1000
"""The most instances in one answer of DescribeInstances."""
IDS_PER_DESCRIBE = 190
"""EC2 accepts 200 filter values in a call, and other filters need a few. Calls use filters and not InstanceIds: one id that
EC2 does not know yet, or any more, fails a whole call by ids."""
LIVING = ("pending", "running", "stopping", "stopped")


class ApiName(enum.Enum):
    """The APIs that we call, by EC2's names."""

    DESCRIBE = "DescribeInstances"
    TYPES = "DescribeInstanceTypes"
    TEMPLATE = "DescribeLaunchTemplateVersions"
    IMAGES = "DescribeImages"
    START = "StartInstances"
    STOP = "StopInstances"
    LAUNCH = "RunInstances"
    TERMINATE = "TerminateInstances"
    MODIFY = "ModifyInstanceAttribute"
    CANCEL_SPOT = "CancelSpotInstanceRequests"
    TAG = "CreateTags"
    UNTAG = "DeleteTags"


class Ec2Calls:
    """Makes calls. Every method raises Ec2Failure and nothing else."""

    def __init__(self, section: Ec2Section) -> None:
        self._source = ClientSource(section, THREADS)
        self._threads = trio.CapacityLimiter(THREADS)
        self._limiters = {api: Limiter(rate) for api, rate in _rates_of(section.rates).items()}
        self.counts: collections.Counter[tuple[ApiName, str]] = collections.Counter()
        """Calls by API and AWS's code ("ok" if there was none)."""

    def follow(self, rates: Ec2RatesSection) -> None:
        """Other rates hold from now on."""
        for api, rate in _rates_of(rates).items():
            self._limiters[api].follow(rate)

    async def take_turn(self, api: ApiName) -> None:
        """Wait until a call may be made.

        The caller collects the call's instances meanwhile, and then passes `turn_taken`.
        """
        await self._limiters[api].take()

    async def describe(self, instance_ids: Sequence[str]) -> "list[InstanceTypeDef]":
        """Look at instances by their ids; ids that EC2 does not know are left out."""
        found = []
        for start in range(0, len(instance_ids), IDS_PER_DESCRIBE):
            part = instance_ids[start : start + IDS_PER_DESCRIBE]
            found += await self._describe([{"Name": "instance-id", "Values": part}])
        return found

    async def find(self, tags: Sequence[tuple[str, Sequence[str]]]) -> "list[InstanceTypeDef]":
        """Look for living instances by tags; of the last tag there may be many values."""
        *few, (last, values) = tags
        found = []
        for start in range(0, len(values), IDS_PER_DESCRIBE):
            filters: list[FilterTypeDef] = [{"Name": f"tag:{name}", "Values": each} for name, each in few]
            filters.append({"Name": f"tag:{last}", "Values": values[start : start + IDS_PER_DESCRIBE]})
            filters.append({"Name": "instance-state-name", "Values": LIVING})
            found += await self._describe(filters)
        return found

    async def find_tagged(self, fleet: tuple[str, str], tag: str) -> "list[InstanceTypeDef]":
        """Look for living instances of a fleet, by its tag and value, that have another tag too, with any value."""
        return await self._describe(
            [
                {"Name": f"tag:{fleet[0]}", "Values": [fleet[1]]},
                {"Name": "tag-key", "Values": [tag]},
                {"Name": "instance-state-name", "Values": LIVING},
            ]
        )

    async def find_launched(self, token: str) -> "list[InstanceTypeDef]":
        """Look for the instance that a launch with this token has made."""
        return await self._describe([{"Name": "client-token", "Values": [token]}])

    async def start(
        self, instance_ids: Sequence[str], *, turn_taken: bool = False
    ) -> "list[InstanceStateChangeTypeDef]":
        """Start instances, all or none of them."""
        return await self._call(
            ApiName.START,
            lambda client: client.start_instances(InstanceIds=instance_ids)["StartingInstances"],
            turn_taken=turn_taken,
        )

    async def stop(
        self, instance_ids: Sequence[str], *, hibernate: bool, force: bool, turn_taken: bool = False
    ) -> "list[InstanceStateChangeTypeDef]":
        """Stop instances, all or none of them."""
        return await self._call(
            ApiName.STOP,
            lambda client: client.stop_instances(InstanceIds=instance_ids, Hibernate=hibernate, Force=force)[
                "StoppingInstances"
            ],
            turn_taken=turn_taken,
        )

    async def terminate(self, instance_id: str) -> None:
        """Terminate one instance."""
        await self._call(ApiName.TERMINATE, lambda client: client.terminate_instances(InstanceIds=[instance_id]))

    async def change_type(self, instance_id: str, instance_type: str) -> None:
        """Give a stopped instance another type."""
        await self._call(
            ApiName.MODIFY,
            lambda client: client.modify_instance_attribute(
                InstanceId=instance_id, InstanceType={"Value": instance_type}
            ),
        )

    async def set_user_data(self, instance_id: str, data: bytes) -> None:
        """Give a stopped or hibernated instance other user data.

        In the form for which EC2's user guide says who encodes the value ("Update the instance user data"): the caller.
        """
        encoded = base64.b64encode(data).decode()
        await self._call(
            ApiName.MODIFY,
            lambda client: client.modify_instance_attribute(
                InstanceId=instance_id, Attribute="userData", Value=encoded
            ),
        )

    async def tag(self, resources: Sequence[str], tags: Mapping[str, str]) -> None:
        """Set tags of an instance, its disks and its Spot request. Those that it has stay, or get the new value."""
        wanted: list[TagTypeDef] = [{"Key": key, "Value": value} for key, value in tags.items()]
        await self._call(ApiName.TAG, lambda client: client.create_tags(Resources=resources, Tags=wanted))

    async def untag(self, resources: Sequence[str], tag: str) -> None:
        """Take a tag away, whatever its value is."""
        await self._call(ApiName.UNTAG, lambda client: client.delete_tags(Resources=resources, Tags=[{"Key": tag}]))

    async def cancel_spot(self, request_id: str) -> None:
        """Cancel a Spot request, so that EC2 launches no other instance by it."""
        await self._call(
            ApiName.CANCEL_SPOT,
            lambda client: client.cancel_spot_instance_requests(SpotInstanceRequestIds=[request_id]),
        )

    async def launch(self, request: "RunInstancesRequestTypeDef") -> "InstanceTypeDef":
        """Launch one instance, or get the one that the same token has launched."""
        return await self._call(ApiName.LAUNCH, lambda client: client.run_instances(**request)["Instances"][0])

    async def hibernation_of(self, types: Iterable[str]) -> dict[str, bool]:
        """Return for each instance type whether it can hibernate."""
        asked = cast("list[InstanceTypeType]", sorted(types))  # AWS's list is longer than any copy of it
        found = await self._call(
            ApiName.TYPES, lambda client: client.describe_instance_types(InstanceTypes=asked)["InstanceTypes"]
        )
        return {each["InstanceType"]: each.get("HibernationSupported", False) for each in found}

    async def template(self, name_or_id: str, version: str) -> "ResponseLaunchTemplateDataTypeDef":
        """Read a launch template."""

        def read(client: "EC2Client") -> "ResponseLaunchTemplateDataTypeDef":
            if name_or_id.startswith("lt-"):
                answer = client.describe_launch_template_versions(
                    LaunchTemplateId=name_or_id, Versions=[version], ResolveAlias=True
                )
            else:
                answer = client.describe_launch_template_versions(
                    LaunchTemplateName=name_or_id, Versions=[version], ResolveAlias=True
                )
            return answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]

        return await self._call(ApiName.TEMPLATE, read)

    async def root_device(self, image_id: str) -> str:
        """Return the image's name of its root volume; "" if EC2 does not tell."""
        images = await self._call(ApiName.IMAGES, lambda client: client.describe_images(ImageIds=[image_id])["Images"])
        return images[0].get("RootDeviceName", "") if images else ""

    async def _describe(self, filters: "Sequence[FilterTypeDef]") -> "list[InstanceTypeDef]":
        found: list[InstanceTypeDef] = []
        token = ""
        while True:
            page, token = await self._call(ApiName.DESCRIBE, functools.partial(_page, filters=filters, token=token))
            found += page
            if not token:
                return found

    async def _call(self, api: ApiName, call: "Callable[[EC2Client], T]", *, turn_taken: bool = False) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1 or not turn_taken:
                await self._limiters[api].take()
            try:
                client = await self._source.client(self._threads)
                result = await trio.to_thread.run_sync(call, client, limiter=self._threads, abandon_on_cancel=True)
            except Exception as exc:  # botocore lets exceptions of files, programs and threads through
                failure = failure_of(api.value, exc, self._source.region)
                failure.after_unanswered = attempt > 1
                self.counts[api, failure.code] += 1
                if failure.doubts_client:
                    self._source.doubt()
                if failure.kind is FailureKind.THROTTLED:
                    self._limiters[api].throttled()
                if failure.code == UNANSWERED and attempt < ATTEMPTS:
                    continue
                raise failure from exc
            else:
                self.counts[api, "ok"] += 1
                self._limiters[api].answered()
                self._source.trust()
                return result
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close the connections."""
        self._source.close()


def _rates_of(rates: Ec2RatesSection) -> dict[ApiName, RateSection]:
    """Each API's rate: AWS has a bucket for each."""
    rare = dict.fromkeys((ApiName.TYPES, ApiName.TEMPLATE, ApiName.IMAGES), rates.describe)
    as_rare_as_launches = dict.fromkeys((ApiName.MODIFY, ApiName.TAG, ApiName.UNTAG), rates.launch)
    return {
        ApiName.DESCRIBE: rates.describe,
        ApiName.START: rates.start,
        ApiName.STOP: rates.stop,
        ApiName.LAUNCH: rates.launch,
        ApiName.TERMINATE: rates.terminate,
        ApiName.CANCEL_SPOT: rates.terminate,
        **rare,
        **as_rare_as_launches,
    }


def _page(
    client: "EC2Client", *, filters: "Sequence[FilterTypeDef]", token: str
) -> "tuple[list[InstanceTypeDef], str]":
    if token:
        answer = client.describe_instances(Filters=filters, MaxResults=PAGE, NextToken=token)
    else:
        answer = client.describe_instances(Filters=filters, MaxResults=PAGE)
    found = [instance for reservation in answer["Reservations"] for instance in reservation.get("Instances", ())]
    return found, answer.get("NextToken", "")
