"""The emulator's parameters and answers are those of botocore's own model of EC2."""

import re
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import botocore.session
import pytest
from botocore.model import ListShape, ServiceModel, Shape, StringShape, StructureShape

from beds.machines.emulator_calls import DEADLINE_S, TAGS
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.daemon.testbed.ec2_emulator.service import ALL_ACTIONS
from bentpipe.daemon.testbed.ec2_emulator.wire import NAMESPACE


def ec2_model() -> ServiceModel:
    return botocore.session.get_session().get_service_model("ec2")


def wire_names(shape: Shape | None, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """The parameter names, as botocore's serializer for "ec2" makes them, of all scalars in a structure."""
    assert isinstance(shape, StructureShape)
    for name, member in shape.members.items():
        given = member.serialization.get("queryName") or member.serialization.get("name", name)
        key = prefix + given[0].upper() + given[1:]
        if isinstance(member, ListShape):
            key, member = f"{key}.N", member.member
        if member.type_name == "structure":
            if depth < 3:
                yield from wire_names(member, f"{key}.", depth + 1)
        else:
            yield key


@pytest.mark.parametrize("action", ALL_ACTIONS)
def test_every_parameter_that_is_understood_exists(action: str) -> None:
    assert ALL_ACTIONS[action].parameters <= set(wire_names(ec2_model().operation_model(action).input_shape))


def check_shape(element: ET.Element, shape: Shape, where: str) -> None:
    match shape:
        case StructureShape():
            known = {member.serialization.get("name", name): member for name, member in shape.members.items()}
            for child in element:
                name = child.tag.removeprefix(f"{{{NAMESPACE}}}")
                assert name in known, f"{where}: no {name} in {shape.name}"
                check_shape(child, known[name], f"{where}.{name}")
        case ListShape():
            for child in element:
                assert child.tag == f"{{{NAMESPACE}}}item", where
                check_shape(child, shape.member, f"{where}[]")
        case Shape(type_name="integer" | "long"):
            int(element.text or "")
        case Shape(type_name="boolean"):
            assert element.text in ("true", "false"), where
        case Shape(type_name="timestamp"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", element.text or ""), where
        case _:
            assert isinstance(shape, StringShape), where
            if shape.enum:
                assert element.text in shape.enum, f"{where}: {element.text}"


def test_every_answer_has_the_shape_of_the_model(emulator: Emulator, control: Control) -> None:
    control.add_template(name="builder")
    stopped, running = control.add_instance(tags=TAGS), control.add_instance(tags=TAGS, running=True)
    resized = control.add_instance(tags=TAGS, hibernation=False)
    emulator.cloud.spot_requests["sir-1"] = True
    for _ in range(5):
        control.add_instance()
    requests = [
        "DescribeInstances&MaxResults=5",
        f"StartInstances&InstanceId.1={stopped}",
        f"StopInstances&InstanceId.1={running}&Hibernate=true",
        "RunInstances&MinCount=1&MaxCount=1&LaunchTemplate.LaunchTemplateName=builder",
        "DescribeInstances",
        f"TerminateInstances&InstanceId.1={stopped}&InstanceId.2={running}",
        "DescribeInstanceTypes",
        "DescribeLaunchTemplateVersions&LaunchTemplateName=builder",
        "DescribeImages",
        f"CreateTags&ResourceId.1={stopped}&Tag.1.Key=a&Tag.1.Value=b",
        f"DeleteTags&ResourceId.1={stopped}&Tag.1.Key=a",
        f"ModifyInstanceAttribute&InstanceId={resized}&InstanceType.Value=c7g.xlarge",
        f"ModifyInstanceAttribute&InstanceId={resized}&Attribute=userData&Value=bmV3",
        "CancelSpotInstanceRequests&SpotInstanceRequestId.1=sir-1",
    ]
    model = ec2_model()
    assert {request.partition("&")[0] for request in requests} == set(ALL_ACTIONS)
    for request in requests:
        action = request.partition("&")[0]
        with urllib.request.urlopen(emulator.url, f"Action={request}".encode(), timeout=DEADLINE_S) as answer:
            root = ET.fromstring(answer.read())
        assert root.tag == f"{{{NAMESPACE}}}{action}Response"
        (request_id,) = [child for child in root if child.tag == f"{{{NAMESPACE}}}requestId"]
        root.remove(request_id)
        if (shape := model.operation_model(action).output_shape) is not None:
            assert len(root)
            check_shape(root, shape, action)


def test_what_it_does_not_know_is_refused(emulator: Emulator) -> None:
    for request, code in (("RebootInstances", "InvalidAction"), ("DescribeImages&Owner.1=self", "UnknownParameter")):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(emulator.url, f"Action={request}".encode(), timeout=DEADLINE_S)
        with error.value as answer:
            assert answer.code == 400
            assert f"<Code>{code}</Code>".encode() in answer.read()
