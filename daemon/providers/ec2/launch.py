"""How an instance is launched: from the configured template, with some settings that we always require. Pure."""

from typing import TYPE_CHECKING, cast

from bentpipe.config.model import SatelliteEc2Section
from bentpipe.daemon.providers.ec2.descriptions import FLEET_TAG, SATELLITE_TAG

if TYPE_CHECKING:
    from types_boto3_ec2.literals import InstanceTypeType
    from types_boto3_ec2.type_defs import (
        BlockDeviceMappingTypeDef,
        EbsBlockDeviceTypeDef,
        LaunchTemplateSpecificationTypeDef,
        ResponseLaunchTemplateDataTypeDef,
        RunInstancesRequestTypeDef,
        TagTypeDef,
    )

METADATA_HOPS = 1
"""With one hop, builds in bridged containers do not reach the instance's credentials."""

KEPT_OF_ROOT = frozenset(
    {"KmsKeyId", "SnapshotId", "VolumeSize", "VolumeType", "Iops", "Throughput", "DeleteOnTermination"}
)
"""Settings of the template's root volume that the launch keeps."""


def launch_request(
    section: SatelliteEc2Section,
    *,
    template: str,
    data: "ResponseLaunchTemplateDataTypeDef",
    root_device: str,
    hibernation: bool,
    token: str,
    fleet: str,
    satellite: str,
) -> "RunInstancesRequestTypeDef":
    """Ask for one instance by the template `template`, whose content is `data`.

    We require: IMDSv2, an encrypted root (hibernation needs it), a shutdown from inside that stops and does not terminate,
    and our tags on the instance and its volumes. Everything else comes from the template.
    """
    tags: list[TagTypeDef] = [{"Key": FLEET_TAG, "Value": fleet}, {"Key": SATELLITE_TAG, "Value": satellite}]
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
    if section.instance_type is not None:
        # AWS's list of types is longer than any copy of it.
        request["InstanceType"] = cast("InstanceTypeType", section.instance_type)
    return request


def _encrypted_root(data: "ResponseLaunchTemplateDataTypeDef", root_device: str) -> "BlockDeviceMappingTypeDef":
    """The template's own root volume, encrypted. A mapping in the request replaces the template's mapping of that device."""
    ebs: EbsBlockDeviceTypeDef = {"Encrypted": True, "DeleteOnTermination": True}
    for mapping in data.get("BlockDeviceMappings", ()):
        if mapping.get("DeviceName") == root_device:
            kept = {key: value for key, value in mapping.get("Ebs", {}).items() if key in KEPT_OF_ROOT}
            ebs.update(cast("EbsBlockDeviceTypeDef", kept))
    return {"DeviceName": root_device, "Ebs": ebs}
