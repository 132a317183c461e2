"""The API's actions that change what an instance is: its type, its user data, its tags, and its Spot request."""

import base64

from bentpipe.daemon.testbed.ec2_emulator.actions import Action, Result, incorrect_state, read_user_data, tags_of
from bentpipe.daemon.testbed.ec2_emulator.cloud import Cloud
from bentpipe.daemon.testbed.ec2_emulator.instance import InstanceState
from bentpipe.daemon.testbed.ec2_emulator.wire import ApiError, Params, strings, structures


def cancel_spot_instance_requests(cloud: Cloud, params: Params) -> Result:
    """CancelSpotInstanceRequests."""
    asked = strings(params, "SpotInstanceRequestId")
    if unknown := [each for each in asked if each not in cloud.spot_requests]:
        raise ApiError(
            "InvalidSpotInstanceRequestID.NotFound", f"The spot instance request ID '{unknown[0]}' does not exist"
        )
    cloud.spot_requests.update(dict.fromkeys(asked, False))
    return {"spotInstanceRequestSet": [{"spotInstanceRequestId": each, "state": "cancelled"} for each in asked]}


def modify_instance_attribute(cloud: Cloud, params: Params) -> Result:
    """ModifyInstanceAttribute: the type or the user data of a stopped instance.

    EC2's user guide, "Change the instance type", and "Update the instance user data".
    """
    (instance,) = cloud.find([params.get("InstanceId", "")])
    wanted = params.get("InstanceType.Value", "")
    if instance.state is not InstanceState.STOPPED:
        raise incorrect_state(instance, "modified")
    if params.get("Attribute") == "userData":
        instance.user_data = read_user_data(base64.b64decode(params["Value"]))
        return {"return": True}
    if wanted not in cloud.types:
        raise ApiError("InvalidParameterValue", f"Invalid value '{wanted}' for InstanceType.")
    if instance.hibernation or instance.spot_request:
        kind = "a Spot Instance" if instance.spot_request else "an instance that is enabled for hibernation"
        raise ApiError("UnsupportedOperation", f"You cannot change the instance type of {kind}.")
    instance.instance_type = wanted
    return {"return": True}


def delete_tags(cloud: Cloud, params: Params) -> Result:
    """DeleteTags: without a value, whatever the value is."""
    keys = [each["Key"] for each in structures(params, "Tag")]
    for tags in tags_of(cloud, strings(params, "ResourceId")):
        for key in keys:
            tags.pop(key, None)
    return {"return": True}


CHANGES = {
    "ModifyInstanceAttribute": Action(
        modify_instance_attribute, frozenset({"InstanceId", "InstanceType.Value", "Attribute", "Value"})
    ),
    "DeleteTags": Action(delete_tags, frozenset({"ResourceId.N", "Tag.N.Key"})),
    "CancelSpotInstanceRequests": Action(cancel_spot_instance_requests, frozenset({"SpotInstanceRequestId.N"})),
}
