"""The emulator behaves as EC2 does, seen by real boto3 over real HTTP."""

import functools
import re
import threading
import urllib.error
from collections.abc import Callable
from typing import Any

import botocore.exceptions
import pytest

from beds.machines.emulator_calls import DEADLINE_S, TAGS, client_of, look, post
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.instance import OnHibernate, OnStart, OnStop
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator


def code_of(call: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(botocore.exceptions.ClientError) as error:
        call()
    return error.value.response["Error"]["Code"], error.value.response["ResponseMetadata"]["HTTPStatusCode"]


def launch(ec2: Any, **more: Any) -> dict[str, Any]:
    request: dict[str, Any] = {
        "MinCount": 1,
        "MaxCount": 1,
        "LaunchTemplate": {"LaunchTemplateName": "builder"},
        "ClientToken": "first",
        "HibernationOptions": {"Configured": True},
        "MetadataOptions": {"HttpTokens": "required"},
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True}}],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in TAGS.items()]}
            for kind in ("instance", "volume")
        ],
    }
    return dict(ec2.run_instances(**(request | more))["Instances"][0])


def test_a_life(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance(tags=TAGS)
    change = ec2.start_instances(InstanceIds=[instance_id])["StartingInstances"][0]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("stopped", "pending")
    control.advance(seconds=16)
    assert look(ec2, instance_id)["State"] == {"Code": 0, "Name": "pending"}
    control.advance(seconds=1)
    running = look(ec2, instance_id)
    assert running["State"]["Name"] == "running"
    assert running["PrivateIpAddress"].startswith("10.")
    boot_id = control.boot_id(instance_id=instance_id)
    ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    assert look(ec2, instance_id)["State"]["Name"] == "stopping"
    assert control.advance_to_next()
    asleep = look(ec2, instance_id)
    assert asleep["State"]["Name"] == "stopped"
    assert asleep["StateReason"]["Code"] == "Client.UserInitiatedHibernate"
    assert re.fullmatch(r"User initiated \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT\)", asleep["StateTransitionReason"])
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    awake = look(ec2, instance_id)
    assert awake["PrivateIpAddress"] == running["PrivateIpAddress"]
    assert control.boot_id(instance_id=instance_id) == boot_id
    ec2.stop_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    assert look(ec2, instance_id)["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    assert control.boot_id(instance_id=instance_id) != boot_id
    assert control.starts(instance_id=instance_id) == 3
    ec2.terminate_instances(InstanceIds=[instance_id])
    assert look(ec2, instance_id)["State"]["Name"] == "shutting-down"
    control.advance_to_next()
    assert look(ec2, instance_id)["State"]["Name"] == "terminated"
    control.forget(instance_id=instance_id)
    assert code_of(lambda: look(ec2, instance_id)) == ("InvalidInstanceID.NotFound", 400)


def test_what_is_repeated_does_nothing_and_what_is_out_of_turn_is_refused(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    ids = [instance_id]
    ec2.start_instances(InstanceIds=ids)
    assert code_of(lambda: ec2.stop_instances(InstanceIds=ids)) == ("IncorrectInstanceState", 400)
    ec2.start_instances(InstanceIds=ids)
    control.advance_to_next()
    assert ec2.start_instances(InstanceIds=ids)["StartingInstances"][0]["CurrentState"]["Name"] == "running"
    ec2.stop_instances(InstanceIds=ids)
    assert code_of(lambda: ec2.start_instances(InstanceIds=ids)) == ("IncorrectInstanceState", 400)
    ec2.stop_instances(InstanceIds=ids, Hibernate=True)
    control.advance_to_next()
    ec2.stop_instances(InstanceIds=ids)
    assert control.starts(instance_id=instance_id) == 1
    ec2.terminate_instances(InstanceIds=ids)
    ec2.terminate_instances(InstanceIds=ids)
    for call in (ec2.start_instances, ec2.stop_instances):
        assert code_of(functools.partial(call, InstanceIds=ids)) == ("IncorrectInstanceState", 400)


def test_one_bad_id_fails_the_batch(ec2: Any, control: Control) -> None:
    good, absent = control.add_instance(), "i-0123456789abcdef0"
    for call in (ec2.start_instances, ec2.stop_instances, ec2.describe_instances, ec2.terminate_instances):
        assert code_of(functools.partial(call, InstanceIds=[good, absent])) == ("InvalidInstanceID.NotFound", 400)
    assert control.state(instance_id=good) == "stopped"
    assert code_of(lambda: look(ec2, "nonsense"))[0] == "InvalidInstanceID.Malformed"


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (OnStart.NO_CAPACITY, "Server.InsufficientInstanceCapacity"),
        (OnStart.NO_KEY, "Client.InternalError"),
    ],
)
def test_starts_that_fail_after_they_were_accepted(ec2: Any, control: Control, outcome: OnStart, reason: str) -> None:
    instance_id = control.add_instance()
    control.script(instance_id=instance_id, on_start=outcome)
    ec2.start_instances(InstanceIds=[instance_id])
    assert look(ec2, instance_id)["State"]["Name"] == "pending"
    control.advance_to_next()
    back = look(ec2, instance_id)
    assert (back["State"]["Name"], back["StateReason"]["Code"]) == ("stopped", reason)
    control.script(instance_id=instance_id, on_start="run")
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    assert look(ec2, instance_id)["State"]["Name"] == "running"


def test_pending_for_ever(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    control.script(instance_id=instance_id, on_start="hang")
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance(seconds=1e6)
    assert look(ec2, instance_id)["State"]["Name"] == "pending"


def hibernate_and_start(ec2: Any, control: Control, instance_id: str) -> tuple[str, bool]:
    """Returns the reason of its sleep, and whether it remembers."""
    boot_id = control.boot_id(instance_id=instance_id)
    ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    control.advance_to_next()
    reason = look(ec2, instance_id)["StateReason"]["Code"]
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    return reason, control.boot_id(instance_id=instance_id) == boot_id


def test_how_hibernation_goes_wrong(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance(running=True)

    def refusal() -> str:
        return code_of(lambda: ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True))[0]

    control.script(instance_id=instance_id, on_hibernate=OnHibernate.REFUSE)
    assert refusal() == "UnsupportedHibernationConfiguration"
    control.script(instance_id=instance_id, on_hibernate=OnHibernate.TOO_EARLY)
    assert refusal() == "UnsupportedOperation"
    control.script(instance_id=instance_id, on_hibernate=OnHibernate.FALL_BACK)
    assert hibernate_and_start(ec2, control, instance_id) == ("Client.UserInitiatedShutdown", False)
    control.script(instance_id=instance_id, on_hibernate=OnHibernate.COLD_BOOT)
    assert hibernate_and_start(ec2, control, instance_id) == ("Client.UserInitiatedHibernate", False)
    control.script(instance_id=instance_id, on_hibernate=OnHibernate.KEEP)
    assert hibernate_and_start(ec2, control, instance_id) == ("Client.UserInitiatedHibernate", True)


def test_hibernation_needs_configuration_and_age(ec2: Any, control: Control) -> None:
    plain = control.add_instance(running=True, hibernation=False)
    young = control.add_instance(running=True, age_s=60)
    for instance_id, code in ((plain, "UnsupportedHibernationConfiguration"), (young, "UnsupportedOperation")):
        found = code_of(functools.partial(ec2.stop_instances, InstanceIds=[instance_id], Hibernate=True))
        assert found == (code, 400)
    control.advance(seconds=60)
    ec2.stop_instances(InstanceIds=[young], Hibernate=True)


@pytest.mark.parametrize(("days", "remembers"), [(59, True), (61, False)])
def test_memory_is_kept_for_sixty_days(ec2: Any, control: Control, days: int, remembers: bool) -> None:
    instance_id = control.add_instance(running=True)
    boot_id = control.boot_id(instance_id=instance_id)
    ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    control.advance_to_next()
    control.age_hibernation(instance_id=instance_id, days=days)
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    assert (control.boot_id(instance_id=instance_id) == boot_id) == remembers


@pytest.mark.parametrize("hibernate", [False, True])
def test_stuck_in_stopping_until_it_is_forced(ec2: Any, control: Control, hibernate: bool) -> None:
    instance_id = control.add_instance(running=True)
    control.script(instance_id=instance_id, on_stop=OnStop.HANG, on_hibernate=OnHibernate.HANG)
    ec2.stop_instances(InstanceIds=[instance_id], Hibernate=hibernate)
    control.advance(seconds=1e6)
    ec2.stop_instances(InstanceIds=[instance_id])
    assert look(ec2, instance_id)["State"]["Name"] == "stopping"
    ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    control.advance_to_next()
    asleep = look(ec2, instance_id)
    assert (asleep["State"]["Name"], asleep["StateReason"]["Code"]) == ("stopped", "Client.UserInitiatedShutdown")


def test_an_address_can_change_with_a_start(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance(running=True)
    before = look(ec2, instance_id)["PrivateIpAddress"]
    control.script(instance_id=instance_id, new_address=True)
    ec2.stop_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    assert look(ec2, instance_id)["PrivateIpAddress"] == before
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance_to_next()
    assert look(ec2, instance_id)["PrivateIpAddress"] != before


def test_descriptions_may_lag_behind(ec2: Any, control: Control) -> None:
    control.set_timing(name="outdated_s", seconds=5)
    instance_id = control.add_instance()
    ec2.start_instances(InstanceIds=[instance_id])
    control.advance(seconds=4)
    assert look(ec2, instance_id)["State"]["Name"] == "stopped"
    control.advance(seconds=1)
    assert look(ec2, instance_id)["State"]["Name"] == "pending"


def test_launching(ec2: Any, control: Control) -> None:
    control.set_timing(name="unseen_s", seconds=30)
    control.add_template(name="builder")
    instance = launch(ec2)
    assert instance["State"]["Name"] == "pending"
    assert {tag["Key"]: tag["Value"] for tag in instance["Tags"]} == TAGS
    assert instance["HibernationOptions"] == {"Configured": True}
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert launch(ec2)["InstanceId"] == instance["InstanceId"]
    assert code_of(lambda: launch(ec2, InstanceType="m7i.large"))[0] == "IdempotentParameterMismatch"
    assert code_of(lambda: look(ec2, instance["InstanceId"]))[0] == "InvalidInstanceID.NotFound"
    by_token = [{"Name": "client-token", "Values": ["first"]}]
    assert ec2.describe_instances(Filters=by_token)["Reservations"] == []
    control.advance(seconds=31)
    assert look(ec2, instance["InstanceId"])["State"]["Name"] == "running"
    assert len(ec2.describe_instances(Filters=by_token)["Reservations"]) == 1
    assert control.instance(instance["InstanceId"]).volume_tags == TAGS
    assert launch(ec2, ClientToken="second")["InstanceId"] != instance["InstanceId"]
    ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    assert code_of(lambda: launch(ec2))[0] == "IdempotentInstanceTerminated"


def test_launches_that_are_refused(ec2: Any, control: Control) -> None:
    assert code_of(lambda: launch(ec2))[0] == "InvalidLaunchTemplateName.NotFoundException"
    control.add_template(name="builder", instance_type="m7g.metal")
    assert code_of(lambda: launch(ec2))[0] == "UnsupportedHibernationConfiguration"
    plain_disk = {"InstanceType": "m7g.large", "BlockDeviceMappings": []}
    assert code_of(lambda: launch(ec2, **plain_disk))[0] == "UnsupportedHibernationConfiguration"
    assert control.describe() == []


def test_what_a_type_and_a_template_can_be_asked_for(ec2: Any, control: Control) -> None:
    template_id = control.add_template(name="builder", instance_type="m5n.large")
    types = ec2.describe_instance_types(InstanceTypes=["m7g.large", "m5n.large"])["InstanceTypes"]
    assert [each["HibernationSupported"] for each in types] == [True, False]
    assert code_of(lambda: ec2.describe_instance_types(InstanceTypes=["x"]))[0] == "InvalidInstanceType"
    (version,) = ec2.describe_launch_template_versions(
        LaunchTemplateId=template_id, Versions=["$Default"], ResolveAlias=True
    )["LaunchTemplateVersions"]
    assert version["LaunchTemplateData"]["InstanceType"] == "m5n.large"
    (image,) = ec2.describe_images(ImageIds=[version["LaunchTemplateData"]["ImageId"]])["Images"]
    assert image["RootDeviceName"] == "/dev/xvda"


def test_filters_and_pages(ec2: Any, control: Control) -> None:
    ids = [control.add_instance(tags={"bentpipe:fleet": "test", "n": str(n % 2)}) for n in range(12)]
    control.add_instance()
    fleet = {"Name": "tag:bentpipe:fleet", "Values": ["test"]}

    def found(**more: Any) -> list[str]:
        pages = ec2.get_paginator("describe_instances").paginate(**more)
        return [each["InstanceId"] for page in pages for one in page["Reservations"] for each in one["Instances"]]

    assert found(Filters=[fleet]) == ids
    assert found(Filters=[fleet], MaxResults=5) == ids
    assert found(Filters=[fleet, {"Name": "tag:n", "Values": ["0"]}], MaxResults=5) == ids[::2]
    assert found(Filters=[{"Name": "instance-id", "Values": [ids[3], "i-absent"]}]) == [ids[3]]
    assert found(Filters=[fleet, {"Name": "instance-state-name", "Values": ["running", "pending"]}]) == []
    first = ec2.describe_instances(Filters=[fleet], MaxResults=5)
    assert len(first["Reservations"]) == 5
    assert "NextToken" in first
    refused = {"InstanceIds": ids[:1], "MaxResults": 5}
    assert code_of(lambda: ec2.describe_instances(**refused))[0] == "InvalidParameterCombination"
    assert code_of(lambda: ec2.describe_instances(MaxResults=4))[0] == "InvalidParameterValue"
    many = [{"Name": "instance-id", "Values": [f"i-{n}" for n in range(201)]}]
    assert code_of(lambda: ec2.describe_instances(Filters=many))[0] == "FilterLimitExceeded"
    ec2.create_tags(Resources=ids[:1], Tags=[{"Key": "n", "Value": "7"}])
    assert found(Filters=[{"Name": "tag:n", "Values": ["7"]}]) == ids[:1]


def test_scripted_errors(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    ids = [instance_id]
    control.fail(action="StartInstances", code="InsufficientInstanceCapacity", status=500, times=2)
    for _ in range(2):
        assert code_of(lambda: ec2.start_instances(InstanceIds=ids)) == ("InsufficientInstanceCapacity", 500)
    control.deny(action="StartInstances")
    assert code_of(lambda: ec2.start_instances(InstanceIds=ids)) == ("UnauthorizedOperation", 403)
    control.clear_faults()
    control.fail(action="*", code="InternalError", status=500, instance_id=instance_id)
    assert ec2.describe_instances()["Reservations"]
    assert code_of(lambda: look(ec2, instance_id)) == ("InternalError", 500)
    outcomes = [(call.action, call.outcome) for call in control.calls()]
    assert outcomes[-3:] == [
        ("StartInstances", "UnauthorizedOperation"),
        ("DescribeInstances", "ok"),
        ("DescribeInstances", "InternalError"),
    ]


def test_broken_connections(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    for after, state in ((False, "stopped"), (True, "pending")):
        control.reset(action="StartInstances", after=after)
        with pytest.raises(botocore.exceptions.HTTPClientError):
            ec2.start_instances(InstanceIds=[instance_id])
        assert look(ec2, instance_id)["State"]["Name"] == state
    assert [call.outcome for call in control.calls(action="StartInstances")] == ["reset", "reset"]


def test_slow_and_held_answers(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    control.hold(action="StartInstances")
    thread = threading.Thread(target=lambda: ec2.start_instances(InstanceIds=[instance_id]))
    thread.start()
    while not control.held(action="StartInstances"):
        pass
    assert look(ec2, instance_id)["State"]["Name"] == "stopped"
    control.release(action="StartInstances")
    thread.join(DEADLINE_S)
    assert look(ec2, instance_id)["State"]["Name"] == "pending"
    control.slow(action="DescribeInstances", delay_s=0.01)
    assert look(ec2, instance_id)


def test_token_buckets(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    control.limit(action="StartInstances", capacity=2, refill_per_s=1)
    for _ in range(2):
        ec2.start_instances(InstanceIds=[instance_id])
    assert code_of(lambda: ec2.start_instances(InstanceIds=[instance_id])) == ("RequestLimitExceeded", 503)
    control.advance(seconds=1)
    ec2.start_instances(InstanceIds=[instance_id])
    for _ in range(50):
        ec2.describe_instances()
    assert code_of(ec2.describe_instances) == ("RequestLimitExceeded", 503)
    ec2.describe_instances(MaxResults=5)


def test_what_others_do(ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    control.others_start(instance_id=instance_id)
    control.advance_to_next()
    assert look(ec2, instance_id)["State"]["Name"] == "running"
    control.others_stop(instance_id=instance_id, inside=True)
    control.advance_to_next()
    assert look(ec2, instance_id)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    control.others_terminate(instance_id=instance_id)
    assert look(ec2, instance_id)["State"]["Name"] == "shutting-down"
    assert {call.action for call in control.calls()} == {"DescribeInstances"}


def test_the_log_tells_who_changed_what(emulator: Emulator, ec2: Any, control: Control) -> None:
    instance_id = control.add_instance()
    other = client_of(emulator.url, "AKIDTWO")
    ec2.start_instances(InstanceIds=[instance_id])
    other.start_instances(InstanceIds=[instance_id])
    other.close()
    first, second = control.calls(action="StartInstances")
    assert (first.principal, first.changes) == ("AKIDONE", ((instance_id, "stopped", "pending"),))
    assert (second.principal, second.changes) == ("AKIDTWO", ())
    control.clear_calls()
    assert control.calls() == []


def test_the_hand_over_http(emulator: Emulator, control: Control) -> None:
    instance_id = str(post(f"{emulator.url}/control/add_instance", tags=TAGS, running=True))
    assert post(f"{emulator.url}/control/state", instance_id=instance_id) == "running"
    post(f"{emulator.url}/control/script", instance_id=instance_id, on_start="no-key")
    assert control.instance(instance_id).script.on_start is OnStart.NO_KEY
    assert post(f"{emulator.url}/control/calls") == []
    for name, body in (("nonsense", {}), ("state", {"instance_id": "i-0"}), ("cloud", {})):
        with pytest.raises(urllib.error.HTTPError) as error:
            post(f"{emulator.url}/control/{name}", **body)
        error.value.close()
