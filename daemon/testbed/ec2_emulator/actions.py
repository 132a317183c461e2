"""The API's actions on the emulated cloud: parameters in, result out. Each lists every parameter that it understands."""

import base64
import dataclasses
import datetime
import fnmatch
import gzip
import secrets
from collections.abc import Callable

from bentpipe.daemon.testbed.ec2_emulator.cloud import Cloud, Launched, Template
from bentpipe.daemon.testbed.ec2_emulator.instance import (
    USER_HIBERNATE,
    USER_SHUTDOWN,
    Instance,
    InstanceState,
    OnHibernate,
)
from bentpipe.daemon.testbed.ec2_emulator.wire import ApiError, Element, Params, flag, number, strings, structures

OWNER = "123456789012"
USER_DATA_BYTES = 16 << 10
"""Before base 64."""
GZIP_MAGIC = b"\x1f\x8b"
MAX_FILTER_VALUES = 200
"""EC2's own limit for one request."""
Result = dict[str, Element]


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """The function that carries out one of EC2's actions, and the parameters that it knows."""

    run: Callable[[Cloud, Params], Result]
    parameters: frozenset[str]
    """As in the request, with N for the numbers."""


def describe_instances(cloud: Cloud, params: Params) -> Result:
    """DescribeInstances: by ids or by filters, in pages."""
    ids = strings(params, "InstanceId")
    limit = number(params, "MaxResults")
    if limit is not None and ids:
        raise ApiError(
            "InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxResults"
        )
    if limit is not None and not 5 <= limit <= 1000:
        raise ApiError("InvalidParameterValue", f"Value ( {limit} ) for parameter maxResults is invalid.")
    known = cloud.find(ids) if ids else list(cloud.visible())
    found = [each.view(cloud.clock.now()) for each in known]
    filters = [(each["Name"], strings(each, "Value")) for each in structures(params, "Filter")]
    if sum(len(values) for _, values in filters) > MAX_FILTER_VALUES:
        raise ApiError("FilterLimitExceeded", "The maximum number of filter values specified on a single call is 200")
    found = [each for each in found if all(_fits(each, name, values) for name, values in filters)]
    page, token = _page(found, limit, params.get("NextToken"))
    return {"reservationSet": [_reservation([each]) for each in page], "nextToken": token}


def start_instances(cloud: Cloud, params: Params) -> Result:
    """StartInstances."""
    instances = _named(cloud, params)
    for each in instances:
        if each.state in (InstanceState.STOPPING, InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
            raise incorrect_state(each, "started")
    stopped = [each for each in instances if each.state is InstanceState.STOPPED]
    unfulfilled = {
        each.instance_id: not cloud.check_capacity(each.instance_type, each.zone, spot=bool(each.spot_request))
        for each in stopped
    }
    changes: list[Element] = []
    for each in instances:
        previous = each.state_element()
        if each.state is InstanceState.STOPPED:
            each.begin_start(cloud.clock.now(), cloud.timings, unfulfilled=unfulfilled[each.instance_id])
        changes.append(_change(each, previous))
    return {"instancesSet": changes}


def stop_instances(cloud: Cloud, params: Params) -> Result:
    """StopInstances, with Hibernate and Force."""
    instances = _named(cloud, params)
    hibernate, force = flag(params, "Hibernate"), flag(params, "Force")
    now = cloud.clock.now()
    for each in instances:
        if each.state in (InstanceState.PENDING, InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
            raise incorrect_state(each, "stopped")
        if hibernate and each.state is InstanceState.RUNNING:
            _check_hibernation(cloud, each, now)
    changes: list[Element] = []
    for each in instances:
        previous = each.state_element()
        if each.state is InstanceState.RUNNING or (force and each.state is InstanceState.STOPPING):
            reason = USER_HIBERNATE if hibernate else USER_SHUTDOWN
            cloud.follow(each, each.begin_stop(now, cloud.timings, reason, force=force))
        changes.append(_change(each, previous))
    return {"instancesSet": changes}


def terminate_instances(cloud: Cloud, params: Params) -> Result:
    """TerminateInstances."""
    changes: list[Element] = []
    for each in _named(cloud, params):
        previous = each.state_element()
        if each.state not in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
            cloud.follow(each, each.begin_terminate(cloud.clock.now(), cloud.timings))
            if cloud.spot_requests.get(each.spot_request, False):
                _replace(cloud, each)
        changes.append(_change(each, previous))
    return {"instancesSet": changes}


def _replace(cloud: Cloud, instance: Instance) -> None:
    """EC2's user guide, "Terminate a Spot Instance": a persistent request that is open launches another instance."""
    now = cloud.clock.now()
    successor = dataclasses.replace(
        instance,
        instance_id=f"i-{secrets.token_hex(8)}2",
        private_ip=cloud.addresses.give(),
        launched_at=now,
        created_at=now,
        client_token="",
        tags=dict(instance.tags),
        reason=None,
        transition_reason="",
    )
    successor.launch(now, cloud.timings)
    cloud.instances[successor.instance_id] = successor


def run_instances(cloud: Cloud, params: Params) -> Result:
    """RunInstances from a launch template, with ClientToken."""
    if params.get("MinCount") != "1" or params.get("MaxCount") != "1":
        raise ApiError("InvalidParameterValue", "this emulator launches one instance a call")
    token = params.get("ClientToken", "")
    content = tuple(sorted((name, value) for name, value in params.items() if name != "ClientToken"))
    if token and (earlier := cloud.launched.get(token)):
        return _reservation(_made_before(cloud, earlier, content))
    template = _template(cloud, params, "LaunchTemplate.")
    instance_type = params.get("InstanceType", template.instance_type)
    hibernation = flag(params, "HibernationOptions.Configured")
    encrypted = template.encrypted
    for mapping in structures(params, "BlockDeviceMapping"):
        if mapping.get("DeviceName") == template.root_device:
            encrypted = flag(mapping, "Ebs.Encrypted", encrypted)
    if hibernation and not cloud.types.get(instance_type, False):
        raise ApiError(
            "UnsupportedHibernationConfiguration", f"The instance type '{instance_type}' does not support hibernation."
        )
    if hibernation and not encrypted:
        raise ApiError("UnsupportedHibernationConfiguration", "Hibernation requires an encrypted root volume.")
    zone, subnet_id = _place(cloud, params)
    spot = _check_spot(params, hibernation=hibernation)
    unfulfilled = not cloud.check_capacity(instance_type, zone, spot=spot)
    now = cloud.clock.now()
    instance = Instance(
        instance_id=f"i-{secrets.token_hex(8)}1",
        instance_type=instance_type,
        private_ip=cloud.addresses.give(),
        hibernation=hibernation,
        launched_at=now,
        created_at=now,
        image_id=template.image_id,
        client_token=token or secrets.token_hex(8),
        encrypted=encrypted,
        http_tokens=params.get("MetadataOptions.HttpTokens", "optional"),
        user_data=read_user_data(base64.b64decode(params.get("UserData", ""))),
        subnet_id=subnet_id,
        zone=zone,
        spot_request=f"sir-{secrets.token_hex(4)}" if spot else "",
    )
    if spot:
        cloud.spot_requests[instance.spot_request] = True
    for specification in structures(params, "TagSpecification"):
        tags = {each["Key"]: each.get("Value", "") for each in structures(specification, "Tag")}
        if specification["ResourceType"] == "instance":
            instance.tags.update(tags)
        elif specification["ResourceType"] == "volume":
            instance.volume_tags.update(tags)
    instance.launch(now, cloud.timings, unfulfilled=unfulfilled)
    cloud.instances[instance.instance_id] = instance
    if token:
        cloud.launched[token] = Launched(content, (instance.instance_id,))
    return _reservation([instance])


def _made_before(cloud: Cloud, earlier: Launched, content: tuple[tuple[str, str], ...]) -> list[Instance]:
    """What an earlier call with the same ClientToken has made."""
    if earlier.params != content:
        raise ApiError(
            "IdempotentParameterMismatch",
            "The client token you have provided is associated with a resource that has been created using "
            "different parameters.",
        )
    made = [cloud.instances[each] for each in earlier.instance_ids if each in cloud.instances]
    if not made or made[0].state in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
        raise ApiError(
            "IdempotentInstanceTerminated",
            "The client token you have provided is associated with an instance that has been terminated.",
        )
    return made


def _place(cloud: Cloud, params: Params) -> tuple[str, str]:
    """The zone and the subnet of a launch."""
    subnet_id = params.get("SubnetId")
    zone = params.get("Placement.AvailabilityZone")
    if subnet_id is not None:
        if subnet_id not in cloud.subnets:
            raise ApiError("InvalidSubnetID.NotFound", f"The subnet ID '{subnet_id}' does not exist")
        if zone not in (None, cloud.subnets[subnet_id]):
            raise ApiError("InvalidParameterValue", "The specified subnet is not in the specified Availability Zone.")
        return cloud.subnets[subnet_id], subnet_id
    found = next((each for each, its in cloud.subnets.items() if zone in (None, its)), None)
    if found is None:
        raise ApiError("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
    return cloud.subnets[found], found


def _check_spot(params: Params, *, hibernation: bool) -> bool:
    """Whether a Spot Instance is wanted (botocore's model of EC2, SpotMarketOptions)."""
    if params.get("InstanceMarketOptions.MarketType") is None:
        return False
    behaviour = params.get("InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior")
    if hibernation and behaviour not in (None, "hibernate"):
        raise ApiError("InvalidParameterCombination", "With hibernation configured, the behavior must be hibernate.")
    persistent = params.get("InstanceMarketOptions.SpotOptions.SpotInstanceType") == "persistent"
    if persistent and not hibernation and behaviour not in ("hibernate", "stop"):
        raise ApiError("InvalidParameterCombination", "A persistent request needs the behavior hibernate or stop.")
    return True


def describe_instance_types(cloud: Cloud, params: Params) -> Result:
    """DescribeInstanceTypes: whether a type can hibernate."""
    asked = strings(params, "InstanceType") or sorted(cloud.types)
    if unknown := [each for each in asked if each not in cloud.types]:
        raise ApiError("InvalidInstanceType", f"The following supplied instance types do not exist: [{unknown[0]}]")
    types: list[Element] = [{"instanceType": each, "hibernationSupported": cloud.types[each]} for each in asked]
    return {"instanceTypeSet": types}


def create_tags(cloud: Cloud, params: Params) -> Result:
    """CreateTags."""
    tags = {each["Key"]: each.get("Value", "") for each in structures(params, "Tag")}
    for each in tags_of(cloud, strings(params, "ResourceId")):
        each.update(tags)
    return {"return": True}


def tags_of(cloud: Cloud, resources: list[str]) -> list[dict[str, str]]:
    """The tags of instances, of their disks and of Spot requests, to be changed. Raises ApiError if one is unknown."""
    disks = {each.volume_id: each for each in cloud.instances.values()}
    found = [disks[each].volume_tags for each in resources if each in disks]
    rest = [each for each in resources if each not in disks and each not in cloud.spot_requests]
    return found + [each.tags for each in cloud.find(rest)]


def describe_launch_template_versions(cloud: Cloud, params: Params) -> Result:
    """DescribeLaunchTemplateVersions."""
    template = _template(cloud, params, "")
    ebs: Element = {"encrypted": template.encrypted, "volumeSize": 100, "volumeType": "gp3"}
    data: Element = {
        "imageId": template.image_id,
        "instanceType": template.instance_type,
        "blockDeviceMappingSet": [{"deviceName": template.root_device, "ebs": ebs}],
    }
    version: Element = {
        "launchTemplateId": template.template_id,
        "launchTemplateName": template.name,
        "versionNumber": 1,
        "defaultVersion": True,
        "launchTemplateData": data,
    }
    return {"launchTemplateVersionSet": [version]}


def describe_images(cloud: Cloud, params: Params) -> Result:
    """DescribeImages: an image's root device."""
    known = {each.image_id: each.root_device for each in cloud.templates.values()}
    asked = strings(params, "ImageId")
    if unknown := [each for each in asked if each not in known]:
        raise ApiError("InvalidAMIID.NotFound", f"The image id '[{unknown[0]}]' does not exist")
    images: list[Element] = [
        {"imageId": each, "rootDeviceName": known[each], "rootDeviceType": "ebs", "imageState": "available"}
        for each in asked or known
    ]
    return {"imagesSet": images}


def _named(cloud: Cloud, params: Params) -> list[Instance]:
    ids = strings(params, "InstanceId")
    if not ids:
        raise ApiError("MissingParameter", "The request must contain the parameter InstanceId")
    return cloud.find(ids)


def _template(cloud: Cloud, params: Params, prefix: str) -> Template:
    template_id = params.get(f"{prefix}LaunchTemplateId")
    name = params.get(f"{prefix}LaunchTemplateName")
    for each in cloud.templates.values():
        if template_id == each.template_id or (template_id is None and name == each.name):
            return each
    if template_id is not None:
        raise ApiError("InvalidLaunchTemplateId.NotFound", f"LaunchTemplate {template_id} not found")
    raise ApiError(
        "InvalidLaunchTemplateName.NotFoundException",
        "At least one of the launch templates specified in the request does not exist.",
    )


def incorrect_state(instance: Instance, verb: str) -> ApiError:
    """EC2's answer to a call that the instance's state does not allow; `verb` is in the past tense."""
    return ApiError(
        "IncorrectInstanceState",
        f"The instance '{instance.instance_id}' is not in a state from which it can be {verb}.",
    )


def _check_hibernation(cloud: Cloud, instance: Instance, now: float) -> None:
    if not instance.hibernation or instance.script.on_hibernate is OnHibernate.REFUSE:
        raise ApiError(
            "UnsupportedHibernationConfiguration",
            "The instance can't be hibernated because it was not configured at launch for hibernation: "
            f"{instance.instance_id}",
        )
    young = now - instance.created_at < cloud.timings.hibernatable_s
    if young or instance.script.on_hibernate is OnHibernate.TOO_EARLY:
        raise ApiError(
            "UnsupportedOperation",
            f"Instance {instance.instance_id} is not ready to hibernate yet, retry in a few minutes.",
        )


def _fits(instance: Instance, name: str, values: list[str]) -> bool:
    match name:
        case "instance-id":
            actual = instance.instance_id
        case "instance-state-name":
            actual = instance.state.label
        case "client-token":
            actual = instance.client_token
        case "instance-type":
            actual = instance.instance_type
        case "tag-key":
            return any(fnmatch.fnmatchcase(key, value) for key in instance.tags for value in values)
        case _ if name.startswith("tag:"):
            if (found := instance.tags.get(name.removeprefix("tag:"))) is None:
                return False
            actual = found
        case _:
            raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid")
    return any(fnmatch.fnmatchcase(actual, value) for value in values)


def _page(found: list[Instance], limit: int | None, token: str | None) -> tuple[list[Instance], str | None]:
    start = 0
    if token is not None:
        if not token.startswith("after-") or not token.removeprefix("after-").isdigit():
            raise ApiError("InvalidParameterValue", "Unable to parse pagination token")
        start = int(token.removeprefix("after-"))
    end = len(found) if limit is None else start + limit
    return found[start:end], f"after-{end}" if end < len(found) else None


def _change(instance: Instance, previous: Element) -> Element:
    return {
        "instanceId": instance.instance_id,
        "currentState": instance.state_element(),
        "previousState": previous,
    }


def _reservation(instances: list[Instance]) -> Result:
    return {
        "reservationId": f"r-{instances[0].instance_id.removeprefix('i-')}",
        "ownerId": OWNER,
        "groupSet": [],
        "instancesSet": [_instance(each) for each in instances],
    }


def _instance(instance: Instance) -> Element:
    reason = instance.reason
    return {
        "instanceId": instance.instance_id,
        "imageId": instance.image_id,
        "instanceState": instance.state_element(),
        "privateDnsName": f"ip-{instance.private_ip.replace('.', '-')}.ec2.internal",
        "reason": instance.transition_reason,
        "amiLaunchIndex": 0,
        "productCodes": [],
        "instanceType": instance.instance_type,
        "launchTime": datetime.datetime.fromtimestamp(instance.launched_at, datetime.UTC),
        "spotInstanceRequestId": instance.spot_request or None,
        "instanceLifecycle": "spot" if instance.spot_request else None,
        "placement": {"availabilityZone": instance.zone, "groupName": "", "tenancy": "default"},
        "monitoring": {"state": "disabled"},
        "subnetId": None if instance.state is InstanceState.TERMINATED else instance.subnet_id,
        "privateIpAddress": None if instance.state is InstanceState.TERMINATED else instance.private_ip,
        "ipAddress": instance.public_ip,
        "stateReason": None if reason is None else {"code": reason.code, "message": reason.message},
        "architecture": "arm64",
        "rootDeviceType": "ebs",
        "rootDeviceName": "/dev/xvda",
        "blockDeviceMapping": []
        if instance.state is InstanceState.TERMINATED
        else [{"deviceName": "/dev/xvda", "ebs": {"volumeId": instance.volume_id, "status": "attached"}}],
        "virtualizationType": "hvm",
        "clientToken": instance.client_token,
        "tagSet": [{"key": key, "value": value} for key, value in instance.tags.items()],
        "hypervisor": "xen",
        "networkInterfaceSet": [],
        "ebsOptimized": False,
        "hibernationOptions": {"configured": instance.hibernation},
        "metadataOptions": {"state": "applied", "httpTokens": instance.http_tokens, "httpPutResponseHopLimit": 1},
    }


EBS = ("Encrypted", "VolumeSize", "VolumeType", "DeleteOnTermination", "KmsKeyId", "SnapshotId", "Iops", "Throughput")
SPOT = ("SpotInstanceType", "InstanceInterruptionBehavior")
TEMPLATE = ("LaunchTemplateId", "LaunchTemplateName")
ACTIONS = {
    "DescribeInstances": Action(
        describe_instances,
        frozenset({"InstanceId.N", "Filter.N.Name", "Filter.N.Value.N", "MaxResults", "NextToken"}),
    ),
    "StartInstances": Action(start_instances, frozenset({"InstanceId.N"})),
    "StopInstances": Action(stop_instances, frozenset({"InstanceId.N", "Hibernate", "Force"})),
    "TerminateInstances": Action(terminate_instances, frozenset({"InstanceId.N"})),
    "RunInstances": Action(
        run_instances,
        frozenset(
            {"MinCount", "MaxCount", "ClientToken", "UserData", "InstanceType", "HibernationOptions.Configured"}
            | {f"LaunchTemplate.{name}" for name in (*TEMPLATE, "Version")}
            | {f"MetadataOptions.{name}" for name in ("HttpTokens", "HttpPutResponseHopLimit", "HttpEndpoint")}
            | {"BlockDeviceMapping.N.DeviceName", "InstanceInitiatedShutdownBehavior"}
            | {"SubnetId", "Placement.AvailabilityZone", "InstanceMarketOptions.MarketType"}
            | {f"InstanceMarketOptions.SpotOptions.{name}" for name in SPOT}
            | {f"BlockDeviceMapping.N.Ebs.{name}" for name in EBS}
            | {f"TagSpecification.N.{name}" for name in ("ResourceType", "Tag.N.Key", "Tag.N.Value")}
        ),
    ),
    "DescribeInstanceTypes": Action(describe_instance_types, frozenset({"InstanceType.N"})),
    "CreateTags": Action(create_tags, frozenset({"ResourceId.N", "Tag.N.Key", "Tag.N.Value"})),
    "DescribeLaunchTemplateVersions": Action(
        describe_launch_template_versions,
        frozenset({*TEMPLATE, "LaunchTemplateVersion.N", "ResolveAlias"}),
    ),
    "DescribeImages": Action(describe_images, frozenset({"ImageId.N"})),
}


def read_user_data(given: bytes) -> str:
    """User data as cloud-init reads it: gzip is allowed. Raises ApiError if EC2 would not take it."""
    if len(given) > USER_DATA_BYTES:
        raise ApiError("InvalidParameterValue", f"User data is limited to {USER_DATA_BYTES} bytes")
    return (gzip.decompress(given) if given.startswith(GZIP_MAGIC) else given).decode()
