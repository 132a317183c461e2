"""A launch gives the machine its settings as user data: by the emulator, which takes what EC2 takes."""

import dataclasses
import functools
import secrets

import pytest
import yaml

from beds.machines.emulated_ec2 import ONE, TEMPLATE, ec2_section, machine, running
from beds.machines.rendered import RenderedMachine, machines_of_the_sample
from bentpipe.daemon.errors import ProviderPermanent
from bentpipe.daemon.image.user_data import LIMIT_BYTES
from bentpipe.daemon.service.user_data import UserDataMaker
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

MACHINES = machines_of_the_sample()
LARGE = '[registry."docker.io"]\n' + "".join(f"# {number}\n" for number in range(700))
"""Settings that fit only if they are compressed."""


@pytest.mark.parametrize("more", ["", LARGE], ids=["plain", "compressed"])
@pytest.mark.parametrize("rendered", MACHINES, ids=[each.name for each in MACHINES])
async def test_a_launched_machine_gets_its_settings(
    rendered: RenderedMachine, more: str, emulator: Emulator, control: Control, aws_credentials: None
) -> None:
    section = rendered.section.model_copy(update={"additional_config": more})
    satellite = rendered.machine.model_copy(update={"image": section})
    make = functools.partial(UserDataMaker(None).make, satellite)
    launched = dataclasses.replace(machine("acme/one", launch_template=TEMPLATE), user_data=make)
    control.add_template(name=TEMPLATE)
    async with running(ec2_section(emulator.url), {ONE: launched}) as provider:
        await provider.launch(ONE, "token-1")
        await provider.launch(ONE, "token-1")
    [instance] = emulator.cloud.instances.values()
    told = yaml.safe_load(instance.user_data)
    files = {each["path"]: each["content"] for each in told["write_files"]}
    assert files["/etc/systemd/system/buildkitd.service"]
    assert more in files["/etc/bentpipe/buildkitd.toml"]
    assert "bentpipe-satellite.target" in told["bootcmd"][0][-1]


async def test_settings_that_do_not_fit_are_refused_before_the_launch(
    emulator: Emulator, control: Control, aws_credentials: None
) -> None:
    section = MACHINES[0].section.model_copy(update={"additional_config": f"[a]\n# {secrets.token_hex(LIMIT_BYTES)}"})
    too_much = functools.partial(UserDataMaker(None).make, MACHINES[0].machine.model_copy(update={"image": section}))
    launched = dataclasses.replace(machine("acme/one", launch_template=TEMPLATE), user_data=too_much)
    control.add_template(name=TEMPLATE)
    async with running(ec2_section(emulator.url), {ONE: launched}) as provider:
        with pytest.raises(ProviderPermanent, match=str(LIMIT_BYTES)):
            await provider.launch(ONE, "token-1")
    assert not emulator.cloud.instances


async def test_a_machine_without_the_section_keeps_the_templates_user_data() -> None:
    plain = MACHINES[0].machine.model_copy(update={"image": None})
    assert await UserDataMaker(None).make(plain, "token-1") == b""
