"""Takes the pictures of the page for operators: `make pictures` writes docs/pictures.

The host is a real daemon with real satellites and clients. Its ledger begins with a week that is written for the pictures.
"""

import contextlib
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio
from PIL import Image
from playwright.sync_api import Page, expect

from beds.peers.browser import CHROMIUM, DEADLINE_MS, Scheme, chromium, watched
from beds.ports import free_port
from bentpipe.daemon.ledger.contract import DAY_US, Stamp, StampedTransition
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import NO_FACTS, SatelliteKey, SatelliteState, StateFacts, Transition, Waits, WakePhase
from bentpipe.daemon.testbed.client import DemoClient
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost

FOLDER = Path(__file__).parents[3] / "docs" / "pictures"
TOKEN = "bp_picture"
NAMES = ("android", "backend", "docs", "frontend", "nightly")
HOUR_US = 3_600_000_000
COLOURS = 256
"""Of a picture's palette: a third of the bytes."""
S = SatelliteState
WOKEN = StateFacts(phases=((WakePhase.START, 2.0), (WakePhase.BOOT, 6.0)), waits=Waits(1, 8.0, 8.0), start_attempts=1)

PRICES = '[prices]\ncurrency = "USD"\nawake_hour = 0.77\nalways_hour = 0.02\n'


def working_week(begin_us: int) -> Iterator[tuple[int, str, bool]]:
    """(when, satellite, whether the wake works) of each wake of a week, by a rule and not by chance."""
    for day in range(7):
        weekend = day in (1, 2)
        for number, name in enumerate(NAMES):
            hours = (
                (2.0,)
                if name == "nightly"
                else ()
                if weekend
                else (7.5 + number, 10.2 + number / 2, 13.5, 16.0 + number / 3)
            )
            for hour in hours[: 2 + (day + number) % 3]:
                at_us = begin_us + day * DAY_US + int(hour * HOUR_US)
                yield at_us, name, not (name == "android" and day == 5 and hour < 9)


def transitions(begin_us: int) -> Iterator[tuple[int, Transition]]:
    """The same as changes of state, in the order of time."""
    found: list[tuple[int, Transition]] = []

    def add(at_us: int, name: str, before: S, after: S, cause: str, facts: StateFacts = NO_FACTS) -> None:
        key = SatelliteKey(ORG, name)
        found.append((at_us, Transition(key, before, after, at_us / 1e6, cause, "ci", facts)))

    for name in NAMES:
        add(begin_us, name, S.UNKNOWN, S.SLEEP, "stopped")
    for at_us, name, works in working_week(begin_us):
        add(at_us, name, S.SLEEP, S.STARTING, "a client waits")
        if not works:
            add(
                at_us + HOUR_US // 20, name, S.STARTING, S.FAILED, "no capacity for m7i.2xlarge in eu-central-1a", WOKEN
            )
            add(at_us + HOUR_US // 4, name, S.FAILED, S.SLEEP, "stopped")
            continue
        awake_us = HOUR_US * (3 if name == "nightly" else 2)
        add(at_us + 8_000_000, name, S.STARTING, S.OPERATIONAL, "its port answers", WOKEN)
        add(at_us + awake_us, name, S.OPERATIONAL, S.STOPPING, "idle")
        add(at_us + awake_us + 20_000_000, name, S.STOPPING, S.SLEEP, "hibernated")
    return iter(sorted(found, key=lambda each: each[0]))


async def write_week(path: Path) -> None:
    """A ledger of the last week."""
    now_us = time.time_ns() // 1000
    begin_us = now_us // DAY_US * DAY_US - 7 * DAY_US
    ledger = SqliteLedger(path)
    stamp = Stamp(begin_us, begin_us, "picture")
    await ledger.begin([SatelliteKey(ORG, name) for name in NAMES], stamp)
    changes = [(at_us, change) for at_us, change in transitions(begin_us) if at_us < now_us]
    await ledger.record(
        [StampedTransition(n, Stamp(at_us, at_us, "picture"), change) for n, (at_us, change) in enumerate(changes, 1)]
    )
    await ledger.end(Stamp(now_us, now_us, "picture"))
    await ledger.aclose()


def keep(page: Page, name: str) -> None:
    """Write a small picture of what is seen."""
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    taken.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


def take(url: str, width: int, scheme: Scheme, path: str, name: str) -> None:
    """Sign in, wait until the page is live if it is, and keep it."""
    with chromium() as browser, watched(browser, url, width=width, scheme=scheme) as seen:
        page = seen.page
        page.goto("/")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        if path == "/":
            expect(page.get_by_role("status")).to_have_text("This page is live.", timeout=DEADLINE_MS)
            expect(page.locator('[data-part="held"] tbody tr')).to_have_count(1, timeout=DEADLINE_MS)
        else:
            page.goto(path)
        keep(page, name)


def main() -> int:
    """Take all. Returns an exit code."""
    if CHROMIUM is None:
        print("pictures: Chromium is not installed", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = (
        f'[admin]\naddress = "127.0.0.1:{port}"\noperators = ["chief"]\n{PRICES}'
        f'[[token]]\nname = "chief"\nhash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n'
        f'grants = ["{ORG}/*"]\nscopes = ["manage"]\n'
    )
    url = f"http://127.0.0.1:{port}"
    satellites = [DemoSatellite(name, ("--boot", "120" if name == "android" else "0.2")) for name in NAMES]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as clients:
        ledger = Path(folder) / "ledger.sqlite"
        trio.run(write_week, ledger)
        with EdgeHost(satellites, sleep_after_s=600, wake_deadline_s=300, ledger=ledger, settings=settings) as host:
            for name in ("backend", "backend", "frontend"):
                clients.enter_context(DemoClient(host, name)).echo(b"x" * 200_000)
            waiting = clients.enter_context(DemoClient(host, "android")).echo_future(b"1")
            take(url, 1100, "light", "/", "page")
            take(url, 360, "dark", "/", "page-phone")
            take(url, 1100, "light", "/history?span=7d", "page-history")
            waiting.cancel()
            clients.close()
    print(f"pictures: {', '.join(sorted(each.name for each in FOLDER.glob('*.png')))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
