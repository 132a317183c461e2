"""How an instance is launched: from the configured template, with some settings that we always require. Pure."""

from typing import TYPE_CHECKING, cast

from bentpipe.config.ec2_machine import SatelliteEc2Section
from bentpipe.daemon.providers.ec2.alternatives import Alternative
from bentpipe.daemon.providers.ec2.descriptions import Mark

if TYPE_CHECKING:
    from types_boto3_ec2.literals import InstanceTypeType
    from types_boto3_ec2.type_defs import (
        BlockDeviceMappingTypeDef,
        EbsBlockDeviceTypeDef,
        InstanceNetworkInterfaceSpecificationTypeDef,
        LaunchTemplateSpecificationTypeDef,
        PlacementTypeDef,
        ResponseLaunchTemplateDataTypeDef,
        RunInstancesRequestTypeDef,
        SpotMarketOptionsTypeDef,
        TagTypeDef,
    )

METADATA_HOPS = 1
"""With one hop, builds in bridged containers do not reach the instance's credentials."""

KEPT_OF_ROOT = frozenset(
    {"KmsKeyId", "SnapshotId", "VolumeSize", "VolumeType", "Iops", "Throughput", "DeleteOnTermination"}
)
"""Settings of the template's root volume that the launch keeps."""
KEPT_OF_PLACEMENT = frozenset({"Affinity", "GroupName", "HostId", "Tenancy", "HostResourceGroupArn", "GroupId"})
KEPT_OF_INTERFACE = frozenset(
    {"AssociatePublicIpAddress", "DeleteOnTermination", "Description", "Groups", "InterfaceType", "Ipv6AddressCount"}
)
"""Settings of the template that an alternative's zone or subnet does not replace."""


def launch_request(
    section: SatelliteEc2Section,
    *,
    template: str,
    data: "ResponseLaunchTemplateDataTypeDef",
    root_device: str,
    hibernation: bool,
    token: str,
    mark: Mark,
) -> "RunInstancesRequestTypeDef":
    """Ask for one instance by the template `template`, whose content is `data`.

    We require: IMDSv2, an encrypted root (hibernation needs it), a shutdown from inside that stops and does not terminate,
    and our tags on the instance and its volumes. Everything else comes from the template.
    """
    tags: list[TagTypeDef] = [{"Key": key, "Value": value} for key, value in mark.tags.items()]
    specification: LaunchTemplateSpecificationTypeDef = {"Version": section.launch_template_version}
    if template.startswith("lt-"):
        specification["LaunchTemplateId"] = template
    else:
        specification["LaunchTemplateName"] = template
    request: RunInstancesRequestTypeDef = {
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": token,
        "LaunchTemplate": specification,
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": METADATA_HOPS,
        },
        "BlockDeviceMappings": [_encrypted_root(data, root_device)],
        "HibernationOptions": {"Configured": hibernation},
        "InstanceInitiatedShutdownBehavior": "stop",
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": tags},
            {"ResourceType": "volume", "Tags": tags},
        ],
    }
    return request


def placed(
    request: "RunInstancesRequestTypeDef", alternative: Alternative, data: "ResponseLaunchTemplateDataTypeDef"
) -> "RunInstancesRequestTypeDef":
    """Add what one alternative says. What it does not say comes from the template, whose content is `data`."""
    if alternative.instance_type is not None:
        # AWS's list of types is longer than any copy of it.
        request["InstanceType"] = cast("InstanceTypeType", alternative.instance_type)
    if alternative.zone is not None:
        kept = {key: value for key, value in data.get("Placement", {}).items() if key in KEPT_OF_PLACEMENT}
        request["Placement"] = cast("PlacementTypeDef", {**kept, "AvailabilityZone": alternative.zone})
    if alternative.subnet is not None:
        _put_into_subnet(request, alternative.subnet, data)
    if alternative.spot:
        # A one-time request's instance cannot be stopped, and a satellite sleeps. With hibernation configured, EC2 sets the
        # behaviour itself and refuses another one (botocore's model, SpotMarketOptions).
        options: SpotMarketOptionsTypeDef = {"SpotInstanceType": "persistent"}
        if not request.get("HibernationOptions", {}).get("Configured", False):
            options["InstanceInterruptionBehavior"] = "stop"
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        tags = next(iter(request["TagSpecifications"]))["Tags"]
        request["TagSpecifications"] = [
            *request["TagSpecifications"],
            {"ResourceType": "spot-instances-request", "Tags": tags},
        ]
    return request


def _put_into_subnet(
    request: "RunInstancesRequestTypeDef", subnet: str, data: "ResponseLaunchTemplateDataTypeDef"
) -> None:
    """If the template has network interfaces, EC2 takes a subnet only as part of the first of them."""
    interfaces = data.get("NetworkInterfaces", ())
    if not interfaces:
        request["SubnetId"] = subnet
        return
    kept = {key: value for key, value in interfaces[0].items() if key in KEPT_OF_INTERFACE}
    whole = {**kept, "DeviceIndex": 0, "SubnetId": subnet}
    request["NetworkInterfaces"] = [cast("InstanceNetworkInterfaceSpecificationTypeDef", whole)]


def _encrypted_root(data: "ResponseLaunchTemplateDataTypeDef", root_device: str) -> "BlockDeviceMappingTypeDef":
    """The template's own root volume, encrypted. A mapping in the request replaces the template's mapping of that device."""
    ebs: EbsBlockDeviceTypeDef = {"Encrypted": True, "DeleteOnTermination": True}
    for mapping in data.get("BlockDeviceMappings", ()):
        if mapping.get("DeviceName") == root_device:
            kept = {key: value for key, value in mapping.get("Ebs", {}).items() if key in KEPT_OF_ROOT}
            ebs.update(cast("EbsBlockDeviceTypeDef", kept))
    return {"DeviceName": root_device, "Ebs": ebs}
