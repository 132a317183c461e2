"""Whether a wake was a resume, from what a satellite says of itself."""

import pytest
import trio
from trio.testing import MockClock

from bentpipe.daemon.fleet.resume import UPTIME_SLACK_S, WITNESS_DEADLINE_S, Evidence, Memory, judge
from bentpipe.daemon.model import Address, Resume, SatelliteKey

KEY = SatelliteKey("acme", "a")
ADDRESS = Address("192.0.2.1", 8372)


@pytest.mark.parametrize(
    ("before", "after", "since_start_s", "found"),
    [
        (Evidence("one"), Evidence("one"), 20.0, Resume.RESUMED),
        (Evidence("one"), Evidence("two"), 20.0, Resume.COLD),
        (Evidence("one", 5.0), Evidence("one", 5.0), 20.0, Resume.RESUMED),  # the boot id is the better witness
        (None, Evidence("one"), 20.0, Resume.UNKNOWN),
        (None, Evidence("one", 9000.0), 20.0, Resume.RESUMED),
        (None, Evidence("", 9000.0), 20.0, Resume.RESUMED),
        (None, Evidence("", 15.0), 20.0, Resume.COLD),
        (Evidence("one"), Evidence("", 15.0), 20.0, Resume.COLD),
        (None, Evidence("", 20.0 + UPTIME_SLACK_S), 20.0, Resume.COLD),
        (None, Evidence("", 15.0), None, Resume.UNKNOWN),  # started by others, who knows when
        (Evidence("one"), Evidence("two"), None, Resume.COLD),
        (Evidence("one"), None, 20.0, Resume.UNKNOWN),
        (Evidence("one"), Evidence(), 20.0, Resume.UNKNOWN),
    ],
)
def test_judgement(before: Evidence | None, after: Evidence | None, since_start_s: float | None, found: Resume) -> None:
    assert judge(before, after, since_start_s) is found


async def test_what_it_says_is_remembered_until_the_next_wake(autojump_clock: MockClock) -> None:
    answers = [Evidence("one", 15.0), None, Evidence("one", 900.0), Evidence("two", 3.0)]

    async def witness(key: SatelliteKey, address: Address) -> Evidence | None:
        assert (key, address) == (KEY, ADDRESS)
        return answers.pop(0)

    memory = Memory(KEY, witness)
    found = []
    for _ in range(4):
        memory.start_asked(trio.current_time())
        await trio.sleep(20)
        found.append(await memory.examine(ADDRESS))
    assert found == [Resume.COLD, Resume.UNKNOWN, Resume.RESUMED, Resume.COLD]


async def test_a_satellite_that_does_not_answer_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    async def witness(key: SatelliteKey, address: Address) -> Evidence | None:
        await trio.sleep_forever()

    begun = trio.current_time()
    assert await Memory(KEY, witness).examine(ADDRESS) is Resume.UNKNOWN
    assert trio.current_time() - begun == WITNESS_DEADLINE_S
    assert await Memory(KEY, None).examine(ADDRESS) is Resume.UNKNOWN
