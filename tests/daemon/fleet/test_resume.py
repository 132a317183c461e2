"""Whether a wake was a resume, from what a satellite says of itself."""

import pytest
import trio
from trio.testing import MockClock

from bentpipe.daemon.fleet.resume import BOOT_INFO_DEADLINE_S, UPTIME_SLACK_S, BootInfo, ResumeDetector, judge
from bentpipe.daemon.model import Address, Resume, SatelliteKey

KEY = SatelliteKey("acme", "a")
ADDRESS = Address("192.0.2.1", 8372)


@pytest.mark.parametrize(
    ("before", "after", "since_start_s", "found"),
    [
        (BootInfo("one"), BootInfo("one"), 20.0, Resume.RESUMED),
        (BootInfo("one"), BootInfo("two"), 20.0, Resume.COLD),
        (BootInfo("one", 5.0), BootInfo("one", 5.0), 20.0, Resume.RESUMED),  # the boot id is the better read_boot_info
        (None, BootInfo("one"), 20.0, Resume.UNKNOWN),
        (None, BootInfo("one", 9000.0), 20.0, Resume.RESUMED),
        (None, BootInfo("", 9000.0), 20.0, Resume.RESUMED),
        (None, BootInfo("", 15.0), 20.0, Resume.COLD),
        (BootInfo("one"), BootInfo("", 15.0), 20.0, Resume.COLD),
        (None, BootInfo("", 20.0 + UPTIME_SLACK_S), 20.0, Resume.COLD),
        (None, BootInfo("", 15.0), None, Resume.UNKNOWN),  # started by others, who knows when
        (BootInfo("one"), BootInfo("two"), None, Resume.COLD),
        (BootInfo("one"), None, 20.0, Resume.UNKNOWN),
        (BootInfo("one"), BootInfo(), 20.0, Resume.UNKNOWN),
    ],
)
def test_judgement(before: BootInfo | None, after: BootInfo | None, since_start_s: float | None, found: Resume) -> None:
    assert judge(before, after, since_start_s) is found


async def test_what_it_says_is_remembered_until_the_next_wake(autojump_clock: MockClock) -> None:
    answers = [BootInfo("one", 15.0), None, BootInfo("one", 900.0), BootInfo("two", 3.0)]

    async def read_boot_info(key: SatelliteKey, address: Address) -> BootInfo | None:
        assert (key, address) == (KEY, ADDRESS)
        return answers.pop(0)

    detector = ResumeDetector(KEY, read_boot_info)
    found = []
    for _ in range(4):
        detector.start_asked(trio.current_time())
        await trio.sleep(20)
        found.append(await detector.detect(ADDRESS))
    assert found == [Resume.COLD, Resume.UNKNOWN, Resume.RESUMED, Resume.COLD]


async def test_a_satellite_that_does_not_answer_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    async def read_boot_info(key: SatelliteKey, address: Address) -> BootInfo | None:
        await trio.sleep_forever()

    begun = trio.current_time()
    assert await ResumeDetector(KEY, read_boot_info).detect(ADDRESS) is Resume.UNKNOWN
    assert trio.current_time() - begun == BOOT_INFO_DEADLINE_S
    assert await ResumeDetector(KEY, None).detect(ADDRESS) is Resume.UNKNOWN
