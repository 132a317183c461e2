"""The test bed of the EC2 provider: real boto3 against the emulator, with machines of one habit each."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping

import trio

from beds.contracts.provider import DEADLINE_S
from bentpipe.config.ec2_machine import MachineTypeEc2Section
from bentpipe.config.model import Ec2Section
from bentpipe.daemon.model import Address, MachineId
from bentpipe.daemon.providers.ec2.entry import Ec2Machine
from bentpipe.daemon.providers.ec2.provider import Ec2Provider
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

FLEET = "test"
TEMPLATE = "builder"
NO_LIMITS = {name: {"burst": 1e6, "per_s": 1e6} for name in ("describe", "start", "stop", "launch", "terminate")}
ONE = MachineId("acme.one")
LOOK_AGAIN_S = 0.005


def tags_of(satellite: str, fleet: str = FLEET) -> dict[str, str]:
    return {"bentpipe:fleet": fleet, "bentpipe:satellite": satellite}


def ec2_section(url: str, **more: object) -> Ec2Section:
    settings = {"region": "eu-central-1", "endpoint": url, "fleet": FLEET, "poll": 0.02, "sweep": 0.1}
    return Ec2Section.model_validate({**settings, "rates": NO_LIMITS, **more})


def machine(satellite: str, **section: object) -> Ec2Machine:
    return Ec2Machine(satellite, MachineTypeEc2Section.model_validate(section))


def machine_id(satellite: str) -> MachineId:
    return MachineId(satellite.replace("/", "."))


@contextlib.asynccontextmanager
async def running(section: Ec2Section, machines: Mapping[MachineId, Ec2Machine]) -> AsyncIterator[Ec2Provider]:
    """Run a provider, for a minute at most: a test that waits for ever fails."""
    provider = Ec2Provider(section, machines)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        try:
            with trio.fail_after(2 * DEADLINE_S):
                yield provider
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await provider.aclose()


@contextlib.asynccontextmanager
async def one(emulator: Emulator, **section: object) -> AsyncIterator[Ec2Provider]:
    """A provider of the one machine acme/one."""
    async with running(ec2_section(emulator.url), {ONE: machine("acme/one", **section)}) as provider:
        yield provider


async def wait_for(check: Callable[[], bool]) -> None:
    """Wait for what announces itself to nobody."""
    with trio.fail_after(DEADLINE_S):
        while not check():
            await trio.sleep(LOOK_AGAIN_S)


@dataclasses.dataclass
class Ec2Harness:
    provider: Ec2Provider
    control: Control
    ids: Mapping[str, str]
    good = machine_id("acme/good")
    slow_to_stop = machine_id("acme/deaf")
    unstartable = machine_id("acme/forbidden")
    short_lived = machine_id("acme/keyless")
    unknown = machine_id("acme/unknown")

    async def memory(self, address: Address) -> str:
        (boot_id,) = (each["boot_id"] for each in self.control.describe() if each["private_ip"] == address.host)
        return str(boot_id)

    async def kill(self, killed: MachineId) -> None:
        instance_id = self.ids[killed.replace(".", "/")]
        if self.control.state(instance_id=instance_id) == "stopped":
            self.control.others_terminate(instance_id=instance_id)
        else:
            self.control.others_stop(instance_id=instance_id, force=True)


SATELLITES = ("acme/good", "acme/deaf", "acme/forbidden", "acme/keyless")


def set_up(control: Control) -> dict[str, str]:
    """Make an instance for each satellite. Returns their ids."""
    ids = {each: control.add_instance(tags=tags_of(each)) for each in SATELLITES}
    control.script(instance_id=ids["acme/deaf"], on_stop="hang")
    control.script(instance_id=ids["acme/keyless"], on_start="no-key")
    denied = ids["acme/forbidden"]
    control.fail(action="StartInstances", code="UnauthorizedOperation", status=403, times=None, instance_id=denied)
    control.add_template(name=TEMPLATE)
    return ids
