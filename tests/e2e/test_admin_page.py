"""The page for operators in a real Chromium: on a phone and on a desk, by keyboard, live, and without JavaScript."""

import hashlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from beds.peers.browser import DEADLINE_MS, Scheme, WatchedPage, chromium, needs_chromium, watched
from beds.ports import free_port
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.client import DemoClient
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost

pytestmark = needs_chromium

TOKEN = "bp_page"
SATELLITES = ("builder", "keyboard", "live", "plain")
"""One for each test that changes something."""
SIZES: tuple[tuple[int, Scheme], ...] = ((360, "dark"), (1440, "light"))
expect.set_options(timeout=DEADLINE_MS)


class Bed:
    """An edge host with the page. The satellite `slow` comes up once the file `gate` is there."""

    def __init__(self, host: EdgeHost, url: str, browser: Browser, gate: Path) -> None:
        self.host, self.url, self.browser, self.gate = host, url, browser, gate


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    port = free_port()
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    settings = (
        f'[admin]\naddress = "127.0.0.1:{port}"\noperators = ["chief"]\n'
        f'[[token]]\nname = "chief"\nhash = "sha256:{digest}"\ngrants = ["{ORG}/*"]\nscopes = ["manage"]\n'
    )
    satellites = [DemoSatellite(name, ("--boot", "1")) for name in SATELLITES]
    gate = tmp_path_factory.mktemp("gate") / "open"
    waiting = (
        f'until [ -e {gate} ]; do sleep 0.1; done; exec {sys.executable} -P -m bentpipe.daemon.testbed.satellite "$0"'
    )
    satellites += [
        DemoSatellite("broken", ("--fail",)),
        DemoSatellite("slow", command=("sh", "-c", waiting, "{port}")),
    ]
    with (
        EdgeHost(satellites, sleep_after_s=600, wake_deadline_s=300, settings=settings) as host,
        chromium() as browser,
    ):
        with DemoClient(host, "builder") as client:
            client.echo(b"a connection to show")
        yield Bed(host, f"http://127.0.0.1:{port}", browser, gate)


def sign_in(page: Page) -> None:
    page.goto("/")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


def state(page: Page, satellite: str) -> str:
    """The selector of a satellite's state."""
    return f'[id="{ORG}/{satellite}:state"]'


def look_over(watched_page: WatchedPage, width: int) -> None:
    """What must hold of every page."""
    page = watched_page.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width, page.url
    assert page.locator("h1").count() == 1, page.url
    assert page.evaluate("document.documentElement.lang") == "en"
    tree = page.locator("body").aria_snapshot()
    for landmark in ("- banner:", "- main:", '- link "Skip to the content"'):
        assert landmark in tree, f"{page.url}\n{tree}"
    levels = [int(each) for each in re.findall(r"heading .*\[level=(\d)\]", tree)]
    assert levels[0] == 1, tree
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), f"a level is left out\n{tree}"
    nameless = re.findall(r"- (?:link|button|textbox|region|navigation)(?=:| *$)", tree, re.MULTILINE)
    assert nameless == [], f"{page.url} has controls without a name\n{tree}"
    assert watched_page.violations() == []
    assert watched_page.complaints == []


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_page_is_sound_at_this_width(bed: Bed, width: int, scheme: Scheme) -> None:
    with watched(bed.browser, bed.url, width=width, scheme=scheme) as seen:
        page = seen.page
        page.goto("/")
        look_over(seen, width)
        sign_in(page)
        expect(page.get_by_role("status")).to_contain_text("This page is live.")
        for name in ("Satellites", "Waiting clients", "Last connections", "This host"):
            expect(page.get_by_role("region", name=name)).to_be_visible()
        rows = page.get_by_role("region", name="Satellites").get_by_role("row")
        expect(rows).to_have_count(1 + len(SATELLITES) + 2)
        look_over(seen, width)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) is (scheme == "dark"), background
        connection = page.locator('[data-part="connections"] a').first
        expect(connection).to_be_visible()
        paths = [
            *(f"/satellites/{ORG}/builder", f"/satellites/{ORG}/builder/cut", f"/satellites/{ORG}/broken"),
            *(
                "/history?span=1d",
                "/history?span=365d",
                "/connections",
                f"/connections?satellite={ORG}/builder",
                "/drain",
                "/nonsense",
            ),
            str(connection.get_attribute("href")),
        ]
        for path in paths:
            seen.complaints.clear()
            page.goto(path)
            # The browser itself complains of a status that is not 200.
            seen.complaints = [each for each in seen.complaints if path != "/nonsense" or "404" not in each]
            look_over(seen, width)


def press_until(page: Page, name: str) -> None:
    """Press Tab until the control of this name has the focus; each on the way shows that it has it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "(() => { const e = document.activeElement;"
            " return [e.innerText || e.getAttribute('aria-label') || e.id, getComputedStyle(e).outlineStyle]; })()"
        )
        assert focused[1] != "none", f"{focused[0]} does not show that it has the focus"
        if focused[0].startswith(name):
            return
    raise AssertionError(f"Tab does not reach {name!r}")


def test_everything_can_be_done_by_keyboard(bed: Bed) -> None:
    with watched(bed.browser, bed.url) as seen:
        page = seen.page
        page.goto("/sign-in")
        expect(page.get_by_label("Token")).to_be_focused()
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        press_until(page, f"{ORG}/keyboard")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(f"{ORG}/keyboard")
        press_until(page, "Wake")
        page.keyboard.press("Enter")
        expect(page.locator(".done")).to_contain_text("The wake was asked for")
        expect(page.locator(state(page, "keyboard"))).to_have_text("operational")
        for button, outcome in (
            ("Cut connections", "0 connections"),
            ("Drain", "takes no more clients"),
            ("Let clients in again", "takes clients again"),
        ):
            press_until(page, button)
            page.keyboard.press("Enter")
            if button != "Let clients in again":
                expect(page.get_by_role("heading", level=1)).to_contain_text(f"{ORG}/keyboard")
                press_until(page, "Do it")
                page.keyboard.press("Enter")
            expect(page.locator(".done")).to_contain_text(outcome)
        assert seen.complaints == []


def test_an_open_page_follows_the_daemon(bed: Bed) -> None:
    with watched(bed.browser, bed.url) as seen:
        page = seen.page
        sign_in(page)
        expect(page.get_by_role("status")).to_contain_text("This page is live.")
        page.evaluate("window.loaded = 'once'")
        cell = page.locator(state(page, "live"))
        expect(cell).to_have_text("sleep")
        focused = page.locator('[data-part="connections"] a').first
        focused.focus()
        kept = focused.get_attribute("id")
        column = page.locator(".state-column").bounding_box()
        with DemoClient(bed.host, "live") as client:
            client.echo(b"1")
            expect(cell).to_have_text("operational")
            expect(cell).to_have_attribute("data-state", "operational")
            expect(page.locator(f'[id="{ORG}/live:connections"]')).to_have_text("1")
            expect(page.locator('[data-part="connections"]')).to_contain_text(f"{ORG}/live")
        assert page.evaluate("document.activeElement.id") == kept, "the focus is where it was"
        assert page.locator(".state-column").bounding_box() == column, "no column has moved"
        waiting = page.locator('[data-part="held"]')
        with DemoClient(bed.host, "slow") as client:
            answer = client.echo_future(b"2")
            expect(waiting.get_by_role("row", name=f"{ORG}/slow")).to_be_visible()
            bed.gate.touch()
            answer.result()
        expect(waiting).to_contain_text("Nobody waits.")
        assert page.evaluate("window.loaded") == "once"
        assert seen.complaints == []
        assert seen.violations() == []


def test_it_works_without_javascript(bed: Bed) -> None:
    with watched(bed.browser, bed.url, width=360, scripts=False) as seen:
        page = seen.page
        sign_in(page)
        expect(page.get_by_role("status")).to_have_text("This page shows the moment at which it was loaded.")
        page.get_by_role("link", name=f"{ORG}/plain", exact=True).click()
        page.get_by_role("button", name="Wake").click()
        expect(page.locator(".done")).to_contain_text("The wake was asked for")
        bed.host.wait_state("plain", SatelliteState.OPERATIONAL, DEADLINE_MS / 1000)
        for _ in range(100):
            page.reload()
            if page.locator(state(page, "plain")).inner_text() == "operational":
                break
        expect(page.locator(state(page, "plain"))).to_have_text("operational")
        page.get_by_role("link", name="Put to sleep").click()
        page.get_by_role("link", name="Leave it").click()
        page.get_by_role("link", name="Put to sleep").click()
        page.get_by_role("button", name="Do it").click()
        expect(page.locator(".done")).to_contain_text("It goes to sleep.")
        bed.host.wait_state("plain", SatelliteState.SLEEP, DEADLINE_MS / 1000)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_daemon_that_goes_away_is_told(bed: Bed) -> None:
    """The last test: it stops the daemon."""
    with watched(bed.browser, bed.url) as seen:
        page = seen.page
        sign_in(page)
        expect(page.get_by_role("status")).to_contain_text("This page is live.")
        bed.host.stop()
        expect(page.get_by_role("status")).to_contain_text("The daemon does not answer: what is shown is old.")
