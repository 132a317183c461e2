"""Several providers as one, with real ones."""

from pathlib import Path

import pytest
import trio

from beds.contracts.provider import DEADLINE_S, start
from beds.machines.local_processes import child_section
from bentpipe.daemon.errors import MachineNotFound
from bentpipe.daemon.model import Machine, MachineId, MachineState, SleepMode
from bentpipe.daemon.providers.process.provider import ProcessProvider
from bentpipe.daemon.providers.router import Providers

ONE, TWO, UNKNOWN = MachineId("acme.one"), MachineId("acme.two"), MachineId("acme.unknown")


async def test_each_machine_is_its_providers(tmp_path: Path) -> None:
    first = ProcessProvider({ONE: child_section(tmp_path)})
    second = ProcessProvider({TWO: child_section(tmp_path)})
    both = Providers({ONE: first, TWO: second})
    async with trio.open_nursery() as nursery:
        await nursery.start(both.run)
        looks = [await start(both, each) for each in (ONE, TWO)]
        assert looks == [await first.describe(ONE), await second.describe(TWO)]
        await both.stop(ONE, SleepMode.HIBERNATE)
        assert (await both.wait_changed(looks[0])).state in (MachineState.STOPPING, MachineState.HIBERNATED)
        await both.terminate(TWO)
        with trio.fail_after(DEADLINE_S):
            look = looks[1]
            while look.state is not MachineState.TERMINATED:
                look = await both.wait_changed(look)
        await both.launch(TWO, "token")
        assert (await first.describe(ONE)).state is MachineState.HIBERNATED
        await both.aclose()
        assert (await first.describe(ONE)).state is MachineState.STOPPED
        nursery.cancel_scope.cancel()


async def test_what_is_nobodys_is_not_found(tmp_path: Path) -> None:
    nobody = Providers({})
    for call in (nobody.describe, nobody.start, nobody.terminate):
        with pytest.raises(MachineNotFound):
            await call(UNKNOWN)
    with pytest.raises(MachineNotFound):
        await nobody.stop(UNKNOWN, SleepMode.STOP)
    with pytest.raises(MachineNotFound):
        await nobody.launch(UNKNOWN, "token")
    gone = await nobody.wait_changed(Machine(UNKNOWN, MachineState.RUNNING))
    assert gone.state is MachineState.TERMINATED
    with trio.move_on_after(0) as scope:
        await nobody.wait_changed(gone)
    assert scope.cancelled_caught
