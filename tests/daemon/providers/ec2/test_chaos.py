"""Whatever we and others do to a machine, in any order and with any faults: in the end the provider tells the truth.

And until then it starts a machine only if it was asked to, tells every waiter what it tells everybody, and raises
nothing but ProviderErrors.
"""

import contextlib
import itertools

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beds.machines.emulated_ec2 import TEMPLATE, ec2_section, machine, machine_id, running, tags_of
from bentpipe.daemon.errors import ProviderError
from bentpipe.daemon.model import Machine, MachineState, SleepMode
from bentpipe.daemon.providers.ec2.provider import Ec2Provider
from bentpipe.daemon.testbed.ec2_emulator.clock import ManualClock
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.instance import OnHibernate, OnStart, OnStop
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

ONE = machine_id("acme/one")
DEADLINE_S = 20.0
SETTLED_S = 1_000.0
"""More than any transition takes."""

ERROR = st.sampled_from(
    [
        ("InsufficientInstanceCapacity", 500),
        ("RequestTimeout", 400),
        ("InternalError", 500),
        ("UnauthorizedOperation", 403),
        ("InvalidInstanceID.NotFound", 400),
    ]
)
ACTION = st.sampled_from(["StartInstances", "StopInstances", "DescribeInstances", "RunInstances", "TerminateInstances"])
STEP = st.one_of(
    st.just(("start",)),
    st.tuples(st.just("stop"), st.sampled_from(SleepMode), st.booleans()),
    st.tuples(st.just("launch"), st.integers(0, 2)),
    st.just(("terminate",)),
    st.just(("describe",)),
    st.just(("others start",)),
    st.tuples(st.just("others stop"), st.booleans()),
    st.just(("others terminate",)),
    st.tuples(st.just("advance"), st.sampled_from([1, 10, 40])),
    st.tuples(st.just("script"), st.sampled_from(OnStart), st.sampled_from(OnStop), st.sampled_from(OnHibernate)),
    st.tuples(st.just("fail"), ACTION, ERROR),
    st.tuples(st.just("reset"), ACTION, st.booleans()),
)


def truth(control: Control) -> MachineState:
    """What the newest living instance is, by the emulator itself."""
    living = [each for each in control.describe() if each["state"] not in ("shutting-down", "terminated")]
    if not living:
        return MachineState.TERMINATED
    (only,) = living
    if only["state"] == "stopped" and only["reason"] == "Client.UserInitiatedHibernate":
        return MachineState.HIBERNATED
    return MachineState(only["state"])


async def do(provider: Ec2Provider, control: Control, step: tuple[object, ...]) -> None:
    ids = [str(each["instance_id"]) for each in control.describe() if each["state"] != "terminated"]
    match step:
        case ("start",):
            await provider.start(ONE)
        case ("stop", SleepMode() as mode, bool() as force):
            await provider.stop(ONE, mode, force=force)
        case ("launch", int() as number):
            await provider.launch(ONE, f"token-{number}")
        case ("terminate",):
            await provider.terminate(ONE)
        case ("describe",):
            await provider.describe(ONE)
        case ("advance", int() as seconds):
            control.advance(seconds=seconds)
        case ("fail", str() as action, (str() as code, int() as status)):
            control.fail(action=action, code=code, status=status)
        case ("reset", str() as action, bool() as after):
            control.reset(action=action, after=after)
        case ("others start",):
            for each in ids:
                control.others_start(instance_id=each)
        case ("others stop", bool() as hibernate):
            for each in ids:
                control.others_stop(instance_id=each, hibernate=hibernate)
        case ("others terminate",):
            for each in ids:
                control.others_terminate(instance_id=each)
        case ("script", OnStart() as on_start, OnStop() as on_stop, OnHibernate() as on_hibernate):
            for each in ids:
                control.script(instance_id=each, on_start=on_start, on_stop=on_stop, on_hibernate=on_hibernate)
        case _:
            raise AssertionError(step)


async def run(steps: list[tuple[object, ...]]) -> None:
    with Emulator(ManualClock()) as emulator:
        control = emulator.control
        control.add_template(name=TEMPLATE)
        control.add_instance(tags=tags_of("acme/one"))
        machines = {ONE: machine("acme/one", launch_template=TEMPLATE)}
        async with running(ec2_section(emulator.url, poll=0.01, sweep=0.05), machines) as provider:
            followed = [Machine(ONE, MachineState.TERMINATED, reason="not looked at yet")]

            async def follow() -> None:
                while True:
                    followed.append(await provider.wait_changed(followed[-1]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                for step in steps:
                    with contextlib.suppress(ProviderError):
                        await do(provider, control, step)
                control.clear_faults()
                for each in control.describe():
                    if each["state"] in ("stopping", "pending"):  # what hangs, hangs until somebody acts
                        control.others_stop(instance_id=str(each["instance_id"]), force=True)
                control.advance(seconds=SETTLED_S)
                expected = truth(control)
                with trio.fail_after(DEADLINE_S):
                    while followed[-1].state is not expected:
                        await trio.sleep(0.005)
                if expected is not MachineState.TERMINATED:
                    assert (await provider.describe(ONE)).state is expected
                nursery.cancel_scope.cancel()
        for look in followed:
            assert (look.address is not None) == (look.state is MachineState.RUNNING), look
        for before, after in itertools.pairwise(followed):
            assert before != after
        asked = sum(step[0] in ("start", "others start") for step in steps)
        assert sum(int(str(each["starts"])) for each in control.describe()) <= asked


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(STEP, max_size=12))
@example(steps=[("describe",), ("others start",), ("launch", 1), ("others stop", False)])  # describe told the past
def test_in_the_end_it_tells_the_truth(steps: list[tuple[object, ...]]) -> None:
    trio.run(run, steps)
