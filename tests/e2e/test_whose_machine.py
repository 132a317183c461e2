"""A client reaches its own satellite's machine and no other: fleets in one account, names that look alike, tags, addresses.

Daemons are processes of their own, with the default settings (a sweep of 60 s among them) unless a case says otherwise.
"""

import contextlib
import functools
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from beds.hosts.edge_daemons import EdgeDaemon, config_text, edge_daemon, token_of, wait
from beds.hosts.wires import CutWire
from beds.peers.clients import CallError, GrpcioClient
from beds.ports import free_port
from beds.programs import program
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

AGE_S = 6.0
"""Longer than a look at an instance vouches for its address (`address_age`)."""
SPEED = 100.0
"""A start then takes 0.2 s."""
NAMED = program("peers.named_satellite")
BUILDER = SatelliteKey("acme", "builder")


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Where satellites write who they are and which token they were sent."""
    return tmp_path / "seen"


@pytest.fixture
def cloud(seen: Path) -> Iterator[Emulator]:
    command = (*NAMED, "{host}", "{port}", "{instance_id}", str(seen), str(seen.parent))
    with Emulator(ScaledClock(SPEED), machine_command=command, machine_port=free_port()) as emulator:
        yield emulator


def ec2_of(cloud: Emulator, fleet: str, *, url: str = "", **keys: str) -> str:
    more = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    return f'[ec2]\nregion = "eu-central-1"\nendpoint = "{url or cloud.url}"\nfleet = "{fleet}"\n{more}'


def satellite(cloud: Emulator, keys: str = "", ec2: str = "") -> str:
    assert cloud.cloud.machines is not None
    return f'provider = "ec2"\nmin_awake = 0\n{keys}\n[satellite.ec2]\nport = {cloud.cloud.machines.port}\n{ec2}'


def tags_of(key: SatelliteKey, fleet: str = "prod") -> dict[str, str]:
    return {"bentpipe:fleet": fleet, "bentpipe:satellite": str(key)}


def test_two_fleets_of_one_account_never_share_a_machine(cloud: Emulator, tmp_path: Path) -> None:
    cloud.control.add_template(name="builder")
    launched = 'launch_template = "builder"'
    prod = config_text({BUILDER: satellite(cloud, "", launched)}, sections=ec2_of(cloud, "prod"))
    staging = config_text(
        {BUILDER: satellite(cloud, 'sleep_mode = "stop"\nsleep_after = "1s"', launched)},
        sections=ec2_of(cloud, "staging"),
    )
    with edge_daemon(tmp_path, prod, name="prod") as one, edge_daemon(tmp_path, staging, name="staging") as two:
        answers = [daemon.ask(BUILDER.org, BUILDER.name) for daemon in (one, two)]
        fleets = {each["instance_id"]: each["tags"]["bentpipe:fleet"] for each in cloud.control.describe()}  # type: ignore[index]
        assert [fleets[each] for each in answers] == ["prod", "staging"]
        wait(lambda: cloud.control.state(instance_id=answers[1]) == "stopped", "staging's sleeps")
        assert cloud.control.state(instance_id=answers[0]) == "running"
        assert one.ask(BUILDER.org, BUILDER.name) == answers[0]


def test_names_with_dots_are_told_apart(tmp_path: Path, seen: Path) -> None:
    """`acme.eu/builder` and `acme/eu.builder` are the same letters."""
    keys = [SatelliteKey("acme.eu", "builder"), SatelliteKey("acme", "eu.builder")]
    satellites = {
        key: f"""[satellite.process]
command = {[*NAMED, "{host}", "{port}", str(key), str(seen)]}"""
        for key in keys
    }
    with edge_daemon(tmp_path, config_text(satellites)) as daemon:
        for key in (*keys, *keys):
            assert daemon.ask(key.org, key.name) == str(key)
        for key, other in (keys, keys[::-1]):
            with pytest.raises(CallError, match="no such satellite"):
                daemon.ask(key.org, key.name, token=token_of(other.org))
    for line in seen.read_text().splitlines():
        name, token = line.split()
        assert token == token_of(name.partition("/")[0])


def told(seen: Path) -> set[tuple[str, str]]:
    """Which machine was sent which token."""
    lines = seen.read_text().splitlines() if seen.exists() else []
    return {(name, token) for name, token in map(str.split, lines)}


@pytest.mark.parametrize("daemons", [1, 2])
def test_an_address_that_passes_to_another_tenants_machine(
    cloud: Emulator, tmp_path: Path, seen: Path, daemons: int
) -> None:
    """By default settings: a sweep would notice after a minute. With two daemons neither knows of the other's satellite."""
    other = SatelliteKey("globex", "builder")
    ids = {key: cloud.control.add_instance(tags=tags_of(key)) for key in (BUILDER, other)}
    configured = [(BUILDER, other)] if daemons == 1 else [(BUILDER,), (other,)]
    configs = [
        config_text({key: satellite(cloud) for key in keys}, sections=ec2_of(cloud, "prod")) for keys in configured
    ]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(edge_daemon(tmp_path, each, name=f"e{n}")) for n, each in enumerate(configs)]
        first, last = running[0], running[-1]
        assert first.ask(BUILDER.org, BUILDER.name) == ids[BUILDER]
        address = cloud.control.instance(ids[BUILDER]).private_ip
        cloud.control.others_terminate(instance_id=ids[BUILDER])
        wait(lambda: cloud.control.state(instance_id=ids[BUILDER]) == "terminated", "it is gone")
        cloud.control.script(instance_id=ids[other], address=address)
        assert last.ask(other.org, other.name) == ids[other]
        if daemons == 2:
            time.sleep(AGE_S)
        with pytest.raises(CallError, match=r"gone|no such"):
            first.ask(BUILDER.org, BUILDER.name)
        heir = cloud.control.add_instance(tags=tags_of(BUILDER), running=True)
        wait(lambda: cloud.control.state(instance_id=heir) == "running", "it runs")
        assert last.ask(other.org, other.name) == ids[other]
    owners = {ids[key]: token_of(key.org) for key in ids}
    assert all(owners[name] == token for name, token in told(seen))


def test_an_awake_machine_that_becomes_anothers(cloud: Emulator, tmp_path: Path, seen: Path) -> None:
    """Its tags change; new clients do not reach it, and it is not put to sleep under the other."""
    instance_id = cloud.control.add_instance(tags=tags_of(BUILDER))
    config = config_text({BUILDER: satellite(cloud, 'sleep_after = "8s"')}, sections=ec2_of(cloud, "prod"))
    with edge_daemon(tmp_path, config) as daemon:
        assert daemon.ask(BUILDER.org, BUILDER.name) == instance_id
        cloud.control.tag(instance_id=instance_id, tags={"bentpipe:satellite": "globex/builder"})
        time.sleep(AGE_S)
        with pytest.raises(CallError) as refused:
            daemon.ask(BUILDER.org, BUILDER.name)
        assert "globex" not in refused.value.details
        wait(lambda: daemon.said(message="an instance is not used", reason="bentpipe:satellite=globex/builder"), "why")
        time.sleep(4)
    assert cloud.control.state(instance_id=instance_id) == "running"
    assert cloud.control.calls(action="StopInstances") == []


def test_a_given_instance_of_anothers(cloud: Emulator, tmp_path: Path, seen: Path) -> None:
    instance_id = cloud.control.add_instance(tags=tags_of(BUILDER, "staging"), running=True)
    section = satellite(cloud, "", f'instance_id = "{instance_id}"')
    with edge_daemon(tmp_path, config_text({BUILDER: section}, sections=ec2_of(cloud, "prod"))) as daemon:
        with pytest.raises(CallError) as refused:
            daemon.ask(BUILDER.org, BUILDER.name)
        assert instance_id in refused.value.details
        assert "staging" not in refused.value.details
        wait(lambda: daemon.said(message="an instance is not used", reason="mend its tags, or give"), "what to do")
    assert told(seen) == set()


def test_an_awake_satellite_costs_no_look_a_connection(cloud: Emulator, tmp_path: Path) -> None:
    cloud.control.add_instance(tags=tags_of(BUILDER))
    with edge_daemon(tmp_path, config_text({BUILDER: satellite(cloud)}, sections=ec2_of(cloud, "prod"))) as daemon:
        daemon.ask(BUILDER.org, BUILDER.name)
        cloud.control.clear_calls()
        began = time.monotonic()
        for _ in range(100):
            daemon.ask(BUILDER.org, BUILDER.name)
        looks = len(cloud.control.calls(action="DescribeInstances"))
        assert looks <= 2 + (time.monotonic() - began) / (AGE_S / 3)


def test_while_the_cloud_does_not_answer_old_connections_go_on_and_new_ones_are_told(
    cloud: Emulator, tmp_path: Path
) -> None:
    instance_id = cloud.control.add_instance(tags=tags_of(BUILDER))
    with edge_daemon(tmp_path, config_text({BUILDER: satellite(cloud)}, sections=ec2_of(cloud, "prod"))) as daemon:
        metadata = (
            ("satellite_name", BUILDER.name),
            ("satellite_org", BUILDER.org),
            ("satellite_token", token_of(BUILDER.org)),
        )
        client = GrpcioClient(daemon.port, None, metadata)
        assert client.unary("Echo", b"").decode() == instance_id
        cloud.control.fail(action="DescribeInstances", code="InternalError", status=500, times=None)
        time.sleep(AGE_S)
        with pytest.raises(CallError, match=r"not certain.*InternalError"):
            daemon.ask(BUILDER.org, BUILDER.name)
        assert client.unary("Echo", b"").decode() == instance_id
        cloud.control.clear_faults()
        assert daemon.ask(BUILDER.org, BUILDER.name) == instance_id
        client.close()
    assert cloud.control.starts(instance_id=instance_id) == 1


def test_a_satellite_with_a_name_of_its_own_needs_no_look(cloud: Emulator, tmp_path: Path, seen: Path) -> None:
    """Its certificate is verified before anything is sent. The two daemons know nothing of each other's satellites."""
    other = SatelliteKey("globex", "builder")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ids, configs = {}, {}
    for key in (BUILDER, other):
        ids[key] = cloud.control.add_instance(tags=tags_of(key))
        name = f"{key.name}.{key.org}.internal"
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{ids[key]}.pem")
        tls = f'[satellite.tls]\nca = "{tmp_path / "ca.pem"}"\nserver_name = "{name}"'
        configs[key] = functools.partial(config_text, {key: satellite(cloud, "", tls)})
    with (
        CutWire(int(cloud.url.rpartition(":")[2])) as wire,
        edge_daemon(tmp_path, configs[BUILDER](sections=ec2_of(cloud, "prod", url=wire.url)), name="one") as one,
        edge_daemon(tmp_path, configs[other](sections=ec2_of(cloud, "prod")), name="two") as two,
    ):
        assert one.ask(BUILDER.org, BUILDER.name) == ids[BUILDER]
        wire.cut()
        time.sleep(AGE_S)
        assert one.ask(BUILDER.org, BUILDER.name) == ids[BUILDER]  # EC2 cannot be asked
        address = cloud.control.instance(ids[BUILDER]).private_ip
        cloud.control.others_terminate(instance_id=ids[BUILDER])
        wait(lambda: cloud.control.state(instance_id=ids[BUILDER]) == "terminated", "it is gone")
        cloud.control.script(instance_id=ids[other], address=address)
        assert two.ask(other.org, other.name) == ids[other]
        with pytest.raises(CallError, match=r"(?i)certificate|hostname"):
            one.ask(BUILDER.org, BUILDER.name)
        assert two.ask(other.org, other.name) == ids[other]
    owners = {ids[key]: token_of(key.org) for key in ids}
    assert told(seen) == {(name, token) for name, token in owners.items()}


def test_what_was_launched_and_became_anothers_is_launched_anew_when_people_say_so(
    cloud: Emulator, tmp_path: Path
) -> None:
    """A second machine costs money while the first one is there: mended tags or SIGHUP, and nothing else."""
    cloud.control.add_template(name="builder")
    config = config_text(
        {BUILDER: satellite(cloud, "", 'launch_template = "builder"')}, sections=ec2_of(cloud, "prod", sweep="1s")
    )
    with edge_daemon(tmp_path, config) as daemon:
        first = daemon.ask(BUILDER.org, BUILDER.name)
        cloud.control.tag(instance_id=first, tags={"bentpipe:fleet": "staging"})
        wait(lambda: daemon.said(message="an instance is not used"), "it is noticed")
        for _ in range(2):
            with pytest.raises(CallError):
                daemon.ask(BUILDER.org, BUILDER.name)
        cloud.control.tag(instance_id=first, tags={"bentpipe:fleet": "prod"})
        wait(lambda: answers(daemon), "mended tags are seen")
        assert daemon.ask(BUILDER.org, BUILDER.name) == first
        cloud.control.tag(instance_id=first, tags={"bentpipe:fleet": "staging"})
        wait(lambda: not answers(daemon), "it is noticed again")
        assert len(cloud.control.describe()) == 1
        daemon.process.send_signal(signal.SIGHUP)
        wait(lambda: daemon.said(message="signal", signal="SIGHUP"), "it is heard")
        wait(lambda: answers(daemon), "another is launched")
        second = daemon.ask(BUILDER.org, BUILDER.name)
        assert second != first
    assert {each["instance_id"]: each["state"] for each in cloud.control.describe()} == {
        first: "running",
        second: "running",
    }


def answers(daemon: EdgeDaemon) -> bool:
    try:
        daemon.ask(BUILDER.org, BUILDER.name)
    except CallError:
        return False
    return True
