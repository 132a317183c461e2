"""The IAM policy of the documentation allows what the provider does to EC2, and nothing else."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from beds.machines.iam import Authorization, allows, listed
from bentpipe.daemon.providers.ec2.calls import ApiName

POLICY = Path(__file__).parents[4] / "config" / "iam-policy.json"
STATEMENTS = json.loads(POLICY.read_text())["Statement"]
LOOKS = {api.value for api in ApiName if api.value.startswith("Describe")}

HERE = "arn:aws:ec2:REGION:ACCOUNT"
TEMPLATE = f"{HERE}:launch-template/TEMPLATE"
INSTANCE, VOLUME = f"{HERE}:instance/i-1", f"{HERE}:volume/vol-1"
SPOT_REQUEST = f"{HERE}:spot-instances-request/sir-1"
TAGS = {"aws:RequestTag/bentpipe:fleet": "FLEET", "aws:RequestTag/bentpipe:satellite": "acme/builder"}
OTHER = TEMPLATE.replace("TEMPLATE", "lt-other")


def launch(
    template: str | None = TEMPLATE, tags: Mapping[str, str] = TAGS, **instead: tuple[str, bool]
) -> list[Authorization]:
    """What AWS asks for the provider's RunInstances, resource by resource (Service Authorization Reference, EC2).

    `instead`: a resource that the request names itself, and whether it is also the template's.
    """
    by = {} if template is None else {"ec2:LaunchTemplate": template}
    named = {
        "image": ("arn:aws:ec2:REGION::image/IMAGE", True),
        "subnet": (f"{HERE}:subnet/SUBNET", True),
        "group": (f"{HERE}:security-group/GROUP", True),
        **instead,
    }
    asked = [Authorization("ec2:RunInstances", each, {**by, **tags}) for each in (INSTANCE, VOLUME)]
    asked += [
        Authorization("ec2:RunInstances", arn, {**by, "ec2:IsLaunchTemplateResource": str(is_templates).lower()})
        for arn, is_templates in named.values()
    ]
    subnet = {**by, "ec2:Subnet": named["subnet"][0]}
    asked.append(Authorization("ec2:RunInstances", f"{HERE}:network-interface/eni-1", subnet))
    asked.append(Authorization("ec2:RunInstances", "arn:aws:ec2:REGION::snapshot/snap-1", by))
    if template is not None:
        asked.append(Authorization("ec2:RunInstances", template, {}))
    asked += [
        Authorization("ec2:CreateTags", each, {**tags, "ec2:CreateAction": "RunInstances"})
        for each in (INSTANCE, VOLUME)
    ]
    return asked


def refused(asked: list[Authorization]) -> set[str]:
    return {each.resource.split(":", 5)[5].partition("/")[0] for each in asked if not allows(STATEMENTS, each)}


def test_the_policy_names_the_calls_that_are_made() -> None:
    actions = {action for each in STATEMENTS for action in listed(each["Action"])}
    assert {each.removeprefix("ec2:") for each in actions if each.startswith("ec2:")} == {api.value for api in ApiName}


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda each: each["Sid"])
def test_nothing_that_changes_anything_is_allowed_for_every_resource(statement: Mapping[str, object]) -> None:
    actions, resources = listed(statement["Action"]), listed(statement["Resource"])  # type: ignore[arg-type]
    assert statement["Effect"] == "Allow"
    assert not any(each.endswith(":*") or each == "*" for each in actions)
    if {each.removeprefix("ec2:") for each in actions} <= LOOKS:
        return  # EC2 knows no resources for them
    for resource in resources:
        assert resource != "*"
        partition, service, region = resource.split(":")[1:4]
        assert (partition, service, region) in {("aws", "ec2", "REGION"), ("aws", "kms", "REGION"), ("aws", "iam", "")}
        # What does not exist before the call, or is told apart by its tags, has a condition.
        assert "*" not in resource or "Condition" in statement


@pytest.mark.parametrize("api", [ApiName.DESCRIBE, ApiName.TYPES, ApiName.TEMPLATE, ApiName.IMAGES])
def test_looks_are_allowed(api: ApiName) -> None:
    assert allows(STATEMENTS, Authorization(f"ec2:{api.value}", "*"))


@pytest.mark.parametrize("api", [ApiName.START, ApiName.STOP, ApiName.TERMINATE])
def test_only_our_fleet_is_started_stopped_and_terminated(api: ApiName) -> None:
    ours = Authorization(f"ec2:{api.value}", INSTANCE, {"aws:ResourceTag/bentpipe:fleet": "FLEET"})
    assert allows(STATEMENTS, ours)
    for fleet in ("staging", "fleet", ""):
        assert not allows(STATEMENTS, dataclasses.replace(ours, context={"aws:ResourceTag/bentpipe:fleet": fleet}))
    assert not allows(STATEMENTS, dataclasses.replace(ours, context={}))
    elsewhere = INSTANCE.replace("ACCOUNT", "111122223333")
    assert not allows(STATEMENTS, dataclasses.replace(ours, resource=elsewhere))


def test_a_launch_as_the_provider_makes_it_is_allowed() -> None:
    assert refused(launch()) == set()


def test_a_launch_by_an_alternative_is_allowed() -> None:
    """In a subnet that the request names, and as a Spot Instance."""
    assert refused(launch(subnet=(f"{HERE}:subnet/ALTERNATIVE", False))) == set()
    by = {"ec2:LaunchTemplate": TEMPLATE}
    assert allows(STATEMENTS, Authorization("ec2:RunInstances", SPOT_REQUEST, {**by, **TAGS}))
    assert allows(
        STATEMENTS, Authorization("ec2:CreateTags", SPOT_REQUEST, {**TAGS, "ec2:CreateAction": "RunInstances"})
    )
    for context in ({}, by, TAGS, {**by, **TAGS, "aws:RequestTag/bentpipe:fleet": "staging"}):
        assert not allows(STATEMENTS, Authorization("ec2:RunInstances", SPOT_REQUEST, context))


def test_only_our_fleets_types_and_spot_requests_are_changed() -> None:
    ours = {"aws:ResourceTag/bentpipe:fleet": "FLEET"}
    modify = Authorization("ec2:ModifyInstanceAttribute", INSTANCE, {**ours, "ec2:Attribute": "InstanceType"})
    cancel = Authorization("ec2:CancelSpotInstanceRequests", SPOT_REQUEST, ours)
    for asked in (modify, cancel):
        assert allows(STATEMENTS, asked)
        other = {**asked.context, "aws:ResourceTag/bentpipe:fleet": "staging"}
        assert not allows(STATEMENTS, dataclasses.replace(asked, context=other))
    for attribute in ("UserData", "InstanceInitiatedShutdownBehavior", "GroupSet"):
        other = {**ours, "ec2:Attribute": attribute}
        assert not allows(STATEMENTS, dataclasses.replace(modify, context=other))


RESERVE = {"aws:RequestTag/bentpipe:fleet": "FLEET", "aws:RequestTag/bentpipe:reserve": "large/linux/amd64/0f"}
RESERVED = {"aws:ResourceTag/bentpipe:fleet": "FLEET", "aws:ResourceTag/bentpipe:reserve": "large/linux/amd64/0f"}


def test_the_reserve_is_filled_and_given_away() -> None:
    assert refused(launch(tags=RESERVE)) == set()
    assert refused(launch(tags={**RESERVE, "aws:RequestTag/bentpipe:fleet": "staging"})) >= {"instance", "volume"}
    assign = Authorization("ec2:CreateTags", INSTANCE, {**RESERVED, **TAGS})
    take_out = Authorization("ec2:DeleteTags", INSTANCE, {**RESERVED, "aws:TagKeys": "bentpipe:reserve"})
    identify = Authorization("ec2:ModifyInstanceAttribute", INSTANCE, {**RESERVED, "ec2:Attribute": "UserData"})
    for asked in (assign, take_out, identify):
        assert allows(STATEMENTS, asked)
        other = {**asked.context, "aws:ResourceTag/bentpipe:fleet": "staging"}
        assert not allows(STATEMENTS, dataclasses.replace(asked, context=other))
    for asked in (assign, identify):  # those of satellites stay whose they are
        others = {key: value for key, value in asked.context.items() if key != "aws:ResourceTag/bentpipe:reserve"}
        assert not allows(STATEMENTS, dataclasses.replace(asked, context=others))
    for keys in ("bentpipe:fleet", "bentpipe:satellite", "bentpipe:fleet,bentpipe:reserve"):
        assert not allows(STATEMENTS, dataclasses.replace(take_out, context={**RESERVED, "aws:TagKeys": keys}))
    assert not allows(STATEMENTS, dataclasses.replace(take_out, context=RESERVED)), "all tags at once"


@pytest.mark.parametrize(
    ("asked", "by"),
    [
        (launch(template=None), {"instance", "volume", "image", "subnet", "security-group", "network-interface"}),
        (launch(template=OTHER), {"launch-template", "instance"}),
        (launch(tags={}), {"instance", "volume"}),
        (launch(tags={**TAGS, "aws:RequestTag/bentpipe:fleet": "staging"}), {"instance", "volume"}),
        (launch(tags={"aws:RequestTag/bentpipe:fleet": "FLEET"}), {"instance", "volume"}),
        (launch(subnet=(f"{HERE}:subnet/other", False)), {"subnet", "network-interface"}),
        (launch(subnet=(f"{HERE}:subnet/other", True)), {"subnet", "network-interface"}),  # a template that was changed
        (launch(subnet=(f"{HERE}:subnet/SUBNET", False)), {"subnet"}),
        (launch(image=("arn:aws:ec2:REGION::image/other", False)), {"image"}),
        (launch(image=("arn:aws:ec2:REGION::image/other", True)), {"image"}),
        (launch(group=(f"{HERE}:security-group/other", False)), {"security-group"}),
        (launch(group=(f"{HERE}:security-group/other", True)), {"security-group"}),
        (launch(key_pair=(f"{HERE}:key-pair/mine", False)), {"key-pair"}),
    ],
)
def test_any_other_launch_is_refused(asked: list[Authorization], by: set[str]) -> None:
    assert by <= refused(asked)


@pytest.mark.parametrize(
    "asked",
    [
        Authorization("ec2:CreateTags", INSTANCE, TAGS),  # to make one ours that exists
        Authorization("ec2:CreateTags", INSTANCE, {**TAGS, "ec2:CreateAction": "CreateVolume"}),
        Authorization("ec2:CreateTags", f"{HERE}:subnet/SUBNET", {**TAGS, "ec2:CreateAction": "RunInstances"}),
        Authorization("ec2:DeleteTags", INSTANCE, TAGS),
        Authorization("ec2:ModifyInstanceAttribute", INSTANCE, {"aws:ResourceTag/bentpipe:fleet": "FLEET"}),
        Authorization("ec2:CreateLaunchTemplateVersion", TEMPLATE),
        Authorization("kms:Decrypt", "arn:aws:kms:REGION:ACCOUNT:key/other"),
        Authorization("kms:CreateGrant", "arn:aws:kms:REGION:ACCOUNT:key/KEY"),
        Authorization("iam:PassRole", "arn:aws:iam::ACCOUNT:role/admin", {"iam:PassedToService": "ec2.amazonaws.com"}),
        Authorization(
            "iam:PassRole", "arn:aws:iam::ACCOUNT:role/SATELLITE", {"iam:PassedToService": "lambda.amazon.com"}
        ),
    ],
)
def test_what_else_there_is_is_refused(asked: Authorization) -> None:
    assert not allows(STATEMENTS, asked)
