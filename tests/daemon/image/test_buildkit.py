"""What a real buildkitd of each flavour makes of its configuration: the parser takes keys that it does not know."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.machines.rendered import RenderedMachine, machines_of_the_sample
from beds.peers.builds import BuildKit, Missing, buildkit
from beds.peers.earthly_buildkit import earthly_buildkitd
from bentpipe.daemon.image.buildkit import buildkit_configuration
from bentpipe.daemon.image.places import CNI
from bentpipe.daemon.image.programs.cache import configuration
from bentpipe.daemon.image.programs.settings import SatelliteSettings

CACHE_BYTES = 100_000_000_000
START_DEADLINE_S = 60.0
SEARCHED = "/usr/sbin:/sbin:/usr/bin:/bin"
MACHINES: dict[str, RenderedMachine] = {each.section.flavour: each for each in machines_of_the_sample()}
CONTAINED = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""In a network namespace of its own: BuildKit makes a bridge when it starts with CNI."""


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """A policy as BuildKit says it; bytes and nanoseconds."""

    everything: bool
    filters: tuple[str, ...]
    keep_ns: int
    most: int


@pytest.fixture(scope="module")
def programs() -> BuildKit:
    try:
        return buildkit()
    except Missing as exc:
        pytest.skip(f"BuildKit: {exc}")


def buildkitd_of(flavour: str, programs: BuildKit) -> str:
    if flavour == "moby":
        return programs.buildkitd
    try:
        return earthly_buildkitd()
    except Missing as exc:
        pytest.skip(f"Earthly's BuildKit: {exc}")


def rendered(machine: RenderedMachine, folder: Path, runc: str, more: str = "") -> Path:
    """The configuration, with this machine's places instead of a satellite's."""
    image = machine.image(issued=False)
    plugins = Path(machine.section.cni_plugins, "host-local")
    if machine.section.network == "cni" and not (plugins.exists() and shutil.which("iptables", path=SEARCHED)):
        pytest.skip("CNI's plug-ins or iptables are not installed")
    contents = {each.path: each.content for each in image.common}
    settings = SatelliteSettings(**json.loads(contents["/etc/bentpipe/satellite.json"]))
    text = configuration(contents["/etc/bentpipe/buildkitd.toml"], settings, CACHE_BYTES)
    for old, new in (
        ("/var/lib/buildkit", str(folder / "root")),
        ("/run/buildkit/buildkitd.sock", str(folder / "socket")),
        ("tcp://:8372", f"unix://{folder}/second"),
        ("/usr/local/lib/bentpipe/runtime", runc),
        ('"overlayfs"', '"native"'),
    ):
        assert old in text
        text = text.replace(old, new)
    if CNI in contents:
        (folder / "cni.conflist").write_text(contents[CNI])
        text = text.replace(CNI, str(folder / "cni.conflist"))
    path = folder / "buildkitd.toml"
    path.write_text(text + more)
    return path


@contextlib.contextmanager
def running(buildkitd: str, configuration: Path) -> Iterator[None]:
    log = configuration.with_name("log")
    command = [*CONTAINED, buildkitd, "--config", str(configuration)]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while "running server on" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def policies_of(programs: BuildKit, socket: Path) -> tuple[list[Policy], dict[str, str]]:
    """(its policies, its labels)."""
    command = [programs.buildctl, "--addr", f"unix://{socket}", "debug", "workers", "--format", "{{json .}}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_DEADLINE_S, check=True)
    [worker] = json.loads(done.stdout)
    found = [
        # The fork says keepBytes in the field that is called reservedSpace since then; alone it is a limit.
        Policy(
            each["all"],
            tuple(each["filter"] or ()),
            each["keepDuration"],
            each["maxUsedSpace"] or each["reservedSpace"],
        )
        for each in worker["gcPolicy"]
    ]
    return found, worker["labels"]


@pytest.mark.parametrize("flavour", ["moby", "earthly"])
def test_buildkit_reads_what_is_rendered(flavour: str, programs: BuildKit, tmp_path: Path) -> None:
    machine = MACHINES[flavour]
    with running(buildkitd_of(flavour, programs), rendered(machine, tmp_path, programs.runc)):
        policies, labels = policies_of(programs, tmp_path / "socket")
    cache = machine.section.cache
    keep = CACHE_BYTES * cache.keep_percent // 100
    sources = CACHE_BYTES * cache.sources_percent // 100
    filters = ("type==source.local", "type==source.git.checkout")
    assert policies == [
        Policy(False, filters, int(cache.sources_age_s * 1e9), sources),
        Policy(False, (), 0, keep),
        Policy(True, (), 0, keep),
    ]
    assert labels["org.mobyproject.buildkit.worker.executor"] == "oci"
    assert labels["org.mobyproject.buildkit.worker.network"] == machine.section.network


def test_the_fork_does_not_read_mobys_key(programs: BuildKit, tmp_path: Path) -> None:
    """So that the test above would notice if a flavour got the other's key."""
    machine = MACHINES["earthly"]
    configuration = rendered(machine, tmp_path, programs.runc)
    configuration.write_text(configuration.read_text().replace("keepBytes", "maxUsedSpace"))
    with running(buildkitd_of("earthly", programs), configuration):
        policies, _ = policies_of(programs, tmp_path / "socket")
    assert {each.most for each in policies} == {0}


def test_the_fork_reads_the_health_of_clients(programs: BuildKit, tmp_path: Path) -> None:
    """It says nothing of the values, but it refuses one that is not a duration."""
    buildkitd = buildkitd_of("earthly", programs)
    configuration = rendered(MACHINES["earthly"], tmp_path, programs.runc)
    assert 'frequency = "5s"' in configuration.read_text()
    configuration.write_text(configuration.read_text().replace('frequency = "5s"', 'frequency = "often"'))
    done = subprocess.run(
        [*CONTAINED, buildkitd, "--config", str(configuration)],
        capture_output=True,
        text=True,
        timeout=START_DEADLINE_S,
        check=False,
    )
    assert done.returncode != 0
    assert "often" in done.stderr


@pytest.mark.parametrize("flavour", ["moby", "earthly"])
def test_a_step_has_a_network_of_its_own(flavour: str, programs: BuildKit, tmp_path: Path) -> None:
    section = MACHINES[flavour].section.model_copy(update={"network": "cni"})
    configuration = rendered(dataclasses.replace(MACHINES[flavour], section=section), tmp_path, programs.runc)
    context = tmp_path / "context"
    context.mkdir()
    shutil.copy(programs.step, context / "step")
    (context / "Dockerfile").write_text('FROM scratch\nCOPY step /step\nRUN ["/step", "silence", "0"]\n')
    command = [programs.buildctl, "--addr", f"unix://{tmp_path}/socket", "build", "--frontend", "dockerfile.v0"]
    command += ["--local", f"context={context}", "--local", f"dockerfile={context}"]
    with running(buildkitd_of(flavour, programs), configuration):
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_DEADLINE_S, check=False)
        _, labels = policies_of(programs, tmp_path / "socket")
    assert done.returncode == 0, done.stderr
    assert labels["org.mobyproject.buildkit.worker.network"] == "cni"


@pytest.mark.parametrize("flavour", ["moby", "earthly"])
def test_what_an_operator_adds_is_read_too(flavour: str, programs: BuildKit, tmp_path: Path) -> None:
    added = '[worker.oci.labels]\n"example.team" = "builders"\n'
    section = MACHINES[flavour].section.model_copy(update={"additional_config": added})
    machine = dataclasses.replace(MACHINES[flavour], section=section)
    with running(buildkitd_of(flavour, programs), rendered(machine, tmp_path, programs.runc)):
        policies, labels = policies_of(programs, tmp_path / "socket")
    assert labels["example.team"] == "builders"
    assert len(policies) == 3


def test_the_entitlement_is_there_only_if_it_is_allowed() -> None:
    section = MACHINES["moby"].section
    assert "insecure-entitlements" not in buildkit_configuration(section, 8372, tls=False)
    allowed = section.model_copy(update={"security_insecure": True, "parallelism": 4})
    text = buildkit_configuration(allowed, 8372, tls=True)
    assert 'insecure-entitlements = ["security.insecure"]' in text
    assert "max-parallelism = 4" in text
    assert "[grpc.tls]" in text
