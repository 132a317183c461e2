"""What an instance's description says of a machine."""

import datetime
from typing import Any

import pytest

from bentpipe.config.ec2_machine import SatelliteEc2Section
from bentpipe.daemon.model import Address, Fault, Machine, MachineId, MachineState
from bentpipe.daemon.providers.ec2.descriptions import machine_of, read_description, stopped_at

ONE = MachineId("acme.one")
LAUNCHED = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


def look(state: str, *, kind: str = "private", type_hibernates: bool = True, **more: Any) -> Machine:
    section = SatelliteEc2Section.model_validate({"address": kind, "port": 1234})
    instance: Any = {
        "InstanceId": "i-0123456789abcdef0",
        "State": {"Name": state},
        "LaunchTime": LAUNCHED,
        "HibernationOptions": {"Configured": True},
        "PrivateIpAddress": "10.0.0.1",
        **more,
    }
    return machine_of(ONE, read_description(instance, section), section, type_hibernates=type_hibernates)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("pending", MachineState.PENDING),
        ("running", MachineState.RUNNING),
        ("stopping", MachineState.STOPPING),
        ("stopped", MachineState.STOPPED),
        ("shutting-down", MachineState.TERMINATED),
        ("terminated", MachineState.TERMINATED),
    ],
)
def test_states(word: str, state: MachineState) -> None:
    found = look(word)
    assert found.state is state
    assert (found.address is not None) == (state is MachineState.RUNNING)
    asleep = state in (MachineState.STOPPED, MachineState.TERMINATED)
    assert bool(found.reason) == asleep


@pytest.mark.parametrize(
    ("kind", "given", "host"),
    [
        ("private", {}, "10.0.0.1"),
        ("public", {"PublicIpAddress": "198.51.100.1"}, "198.51.100.1"),
        ("ipv6", {"Ipv6Address": "2001:db8::1"}, "2001:db8::1"),
    ],
)
def test_kinds_of_addresses(kind: str, given: dict[str, Any], host: str) -> None:
    assert look("running", kind=kind, **given).address == Address(host, 1234)


def test_without_an_address_of_its_kind_it_does_not_run_yet() -> None:
    found = look("running", kind="public")
    assert (found.state, found.address) == (MachineState.PENDING, None)
    assert "public" in found.reason


@pytest.mark.parametrize(
    ("code", "state", "fault"),
    [
        ("Client.UserInitiatedHibernate", MachineState.HIBERNATED, None),
        ("Client.UserInitiatedShutdown", MachineState.STOPPED, None),
        ("Client.InstanceInitiatedShutdown", MachineState.STOPPED, None),
        ("Client.InternalError", MachineState.STOPPED, Fault.PERMISSION),
        ("Server.InsufficientInstanceCapacity", MachineState.STOPPED, Fault.CAPACITY),
        ("Server.InternalError", MachineState.STOPPED, Fault.OTHER),
    ],
)
def test_why_it_sleeps(code: str, state: MachineState, fault: Fault | None) -> None:
    found = look("stopped", StateReason={"Code": code, "Message": f"{code}: words"})
    assert (found.state, found.fault, found.reason) == (state, fault, f"{code}: words")


def test_since_when_it_sleeps() -> None:
    words = "User initiated (2026-01-31 12:00:05 GMT)"
    assert look("stopped", StateTransitionReason=words).asleep_since == LAUNCHED.timestamp() + 5
    assert look("stopping", StateTransitionReason=words).asleep_since is None
    assert look("stopped", StateTransitionReason="").asleep_since is None
    assert stopped_at("Server.SpotInstanceTermination: Spot instance termination") is None


def test_what_can_hibernate() -> None:
    assert look("running").can_hibernate
    assert not look("running", type_hibernates=False).can_hibernate
    assert not look("running", HibernationOptions={"Configured": False}).can_hibernate
