"""The probe of a port: how often it tries, and that it notices."""

import pytest
import trio
import trio.testing

from beds.ports import free_port
from bentpipe.daemon.fleet import readiness
from bentpipe.daemon.model import Address

HOUR_S = 3600.0


async def test_a_closed_port_of_a_machine_that_is_not_ours_costs_little(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, told = list[float](), list[str]()

    async def refused(address: Address) -> None:
        attempts.append(trio.current_time())
        raise ConnectionRefusedError

    monkeypatch.setattr(readiness, "try_connection", refused)
    with trio.move_on_after(HOUR_S):
        await readiness.wait_listening_seldom(Address("10.0.0.1", 8372), lambda words, silent: told.append(words))
    assert told == [readiness.REFUSED.format(8372)]
    assert attempts[1] - attempts[0] == pytest.approx(readiness.RETRY_S), "at first it is quick: it may be starting"
    assert len(attempts) <= HOUR_S / readiness.SELDOM_S + 10


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_it_is_noticed_when_the_port_opens(host: str) -> None:
    port = free_port()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.wait_listening_seldom, Address(host, port), lambda words, silent: None)
        await trio.sleep(0.1)
        listeners = await trio.open_tcp_listeners(port, host=host)
        with trio.fail_after(30):
            while nursery.child_tasks:
                await trio.sleep(0.01)
        for listener in listeners:
            await listener.aclose()
