"""The page for operators, asked without a browser: who may see and do what, what it shows, and what it does."""

import functools
import http.client
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trio

from beds.hosts.admin_client import PageAnswer, PageClient
from beds.hosts.command_bed import TOKENS, CommandBed, command_bed
from beds.ports import free_port
from bentpipe.daemon.admin import viewer
from bentpipe.daemon.admin.viewer import ATTEMPTS
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.metric_table import VERSION
from bentpipe.daemon.testbed.edge_host import DemoSatellite, EdgeHost

KEY = SatelliteKey("acme", "builder")
SATELLITE = "/satellites/acme/builder"
on_thread = trio.to_thread.run_sync


@pytest.fixture
async def bed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[CommandBed]:
    section = f'[admin]\npath = "{tmp_path / "admin.sock"}"\naddress = "127.0.0.1:{free_port()}"\n'
    async with command_bed(tmp_path, nursery, types=section) as made:
        yield made


def operator(bed: CommandBed) -> PageClient:
    return PageClient(bed.ca.with_name("admin.sock"))


def browser(bed: CommandBed) -> PageClient:
    return PageClient(address_of(bed))


async def signed_in(bed: CommandBed, token: str) -> PageClient:
    client = browser(bed)
    answer = await on_thread(client.sign_in, TOKENS[token])
    assert (answer.status, answer.fields["location"]) == (303, "/"), answer
    return client


async def page(client: PageClient, path: str = "/", status: int = 200) -> str:
    answer: PageAnswer = await on_thread(client.get, path)
    assert answer.status == status, (answer.status, answer.text)
    return answer.text


async def act(client: PageClient, path: str) -> PageAnswer:
    """Press the button of a page that asks."""
    secret = await on_thread(client.secret, path)
    return await on_thread(functools.partial(client.post, path, secret=secret))


async def done(client: PageClient, answer: PageAnswer) -> str:
    """The page that follows an action."""
    assert answer.status == 303, answer
    return await page(client, answer.fields["location"])


async def reached(bed: CommandBed, state: SatelliteState) -> None:
    with trio.fail_after(60):
        while bed.state() is not state:
            await trio.sleep(0.02)


async def test_who_has_not_signed_in_sees_nothing(bed: CommandBed) -> None:
    client = browser(bed)
    for path in ("/", "/connections", SATELLITE, "/drain", f"{SATELLITE}/cut", "/nonsense"):
        answer = await on_thread(client.get, path)
        assert (answer.status, answer.fields.get("location")) == (303, "/sign-in"), path
        assert answer.text == ""
    for path in ("/events", "/parts/satellites"):
        assert (await on_thread(client.get, path)).status == 401
    for path in (f"{SATELLITE}/cut", "/drain", "/sign-out"):
        answer = await on_thread(functools.partial(client.post, path, secret=""))
        assert (answer.status, answer.fields.get("location")) == (303, "/sign-in"), path
    assert "Token" in await page(client, "/sign-in")


async def test_a_wrong_token_is_refused_and_attempts_are_bounded(
    bed: CommandBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "ATTEMPTS_S", 3600.0)  # however slow this machine is
    client = browser(bed)
    answers = [await on_thread(client.sign_in, f"bp_{number}") for number in range(ATTEMPTS + 1)]
    assert [each.status for each in answers] == [403] * ATTEMPTS + [429]
    assert "not valid" in answers[0].text
    assert client.cookie == ""


async def test_the_cookie_is_for_this_site_alone(bed: CommandBed) -> None:
    answer = await on_thread(browser(bed).sign_in, TOKENS["user"])
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(answer.fields["set-cookie"].split("; "))


async def test_every_answer_forbids_frames_and_foreign_scripts(bed: CommandBed) -> None:
    client = operator(bed)
    for path in ("/", "/sign-in", "/nonsense", "/static/page.js", "/static/nonsense", "/connections/x"):
        answer = await on_thread(client.get, path)
        policy = answer.fields["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.fields["x-content-type-options"] == "nosniff"
    refused = await on_thread(functools.partial(client.ask, "GET", "/", fields={"Host": "evil.example"}))
    assert "frame-ancestors 'none'" in refused.fields["content-security-policy"]


async def test_a_foreign_name_gets_nothing(bed: CommandBed) -> None:
    for client in (operator(bed), await signed_in(bed, "manager")):
        for path in ("/", "/static/page.js", "/events", "/sign-in"):
            answer = await on_thread(functools.partial(client.ask, "GET", path, fields={"Host": "e.test"}))
            assert answer.status == 421
            assert "builder" not in answer.text


async def test_no_other_page_can_act(bed: CommandBed) -> None:
    client = operator(bed)
    secret = await on_thread(client.secret, f"{SATELLITE}/wake")
    for fields in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-site"},
    ):
        answer = await on_thread(functools.partial(client.ask, "POST", f"{SATELLITE}/wake", {"secret": secret}, fields))
        assert answer.status == 403
    for form in ({}, {"secret": ""}, {"secret": "x"}, {"secret": secret + "x"}):
        answer = await on_thread(functools.partial(client.ask, "POST", f"{SATELLITE}/wake", form))
        assert answer.status == 403
    assert bed.state() is SatelliteState.SLEEP
    other = await signed_in(bed, "manager")
    assert (await on_thread(functools.partial(other.post, f"{SATELLITE}/wake", secret=secret))).status == 403
    assert (await on_thread(functools.partial(client.get, f"{SATELLITE}/wake"))).status == 200
    assert bed.state() is SatelliteState.SLEEP, "a GET changes nothing"


async def test_the_operator_needs_no_token_on_the_socket(bed: CommandBed) -> None:
    client = operator(bed)
    text = await page(client)
    for word in ("acme/builder", "acme/broken", "This host", "Data planes", "Drain this host"):
        assert word in text
    assert (bed.ca.with_name("admin.sock").stat().st_mode & 0o777) == 0o600


async def test_it_shows_what_top_shows(bed: CommandBed) -> None:
    client = operator(bed)
    with bed.channel() as echo:
        await on_thread(echo, b"x" * 100_000)
        [line] = (await bed.run(["top", "--once", "--json"], "user")).stdout.splitlines()
        text = await page(client, "/parts/satellites")
        for row in json.loads(line)["satellites"]:
            title = f"acme/{row['name']}"
            assert f'id="{title}:state" data-state="{row["state"]}">{row["state"]}<' in text
            assert f'id="{title}:held">{row["held"]}<' in text
            assert f'id="{title}:connections">{row["connections"]}<' in text
        host = await page(client, "/parts/host")
        assert f"<dt>Spliced now</dt><dd>{bed.daemon.handoff.live}</dd>" in host
        assert f"<dt>Accepted</dt><dd>{bed.daemon.counters.accepted}</dd>" in host


async def test_a_token_sees_and_does_what_its_grants_say(bed: CommandBed) -> None:
    user, manager = await signed_in(bed, "user"), await signed_in(bed, "manager")
    for client in (user, manager):
        text = await page(client)
        assert "acme/builder" in text
        assert "This host" not in text
        await page(client, "/drain", 404)
        await page(client, "/satellites/other/builder", 404)
        await page(client, "/satellites/acme/none", 404)
    assert "Wake" in await page(user, SATELLITE)
    for action in ("sleep", "drain", "admit", "cut"):
        assert f"{SATELLITE}/{action}" not in await page(user, SATELLITE)
        await page(user, f"{SATELLITE}/{action}", 403)
        secret = await on_thread(user.secret, "/")
        answer = await on_thread(functools.partial(user.post, f"{SATELLITE}/{action}", secret=secret))
        assert answer.status == 403
    assert f"{SATELLITE}/cut" in await page(manager, SATELLITE)


async def test_a_token_of_the_operators_list_sees_the_host(bed: CommandBed) -> None:
    section = bed.daemon.config.admin
    assert section is not None
    admin = section.model_copy(update={"operators": ("manager",)})
    client = await signed_in(bed, "manager")
    assert "This host" not in await page(client)
    bed.daemon.current.config = bed.daemon.config.model_copy(update={"admin": admin})
    assert "This host" in await page(client)
    assert "This host" not in await page(await signed_in(bed, "user"))


async def test_reading_can_be_open_and_acting_cannot(bed: CommandBed) -> None:
    section = bed.daemon.config.admin
    assert section is not None
    admin = section.model_copy(update={"read_without_token": True})
    bed.daemon.current.config = bed.daemon.config.model_copy(update={"admin": admin})
    client = browser(bed)
    text = await page(client)
    assert "This host" in text
    assert "Sign in" in text
    assert f"{SATELLITE}/wake" not in await page(client, SATELLITE)
    assert (await on_thread(functools.partial(client.post, f"{SATELLITE}/wake", secret=""))).status == 403
    await page(client, f"{SATELLITE}/wake", 403)
    await page(client, "/drain", 404)


async def test_a_token_that_ends_ends_the_sign_in(bed: CommandBed) -> None:
    client = await signed_in(bed, "user")
    tokens = [each for each in bed.daemon.config.token if each.name != "user"]
    bed.daemon.account_parts.admission.replace_configured(tokens, ())
    answer = await on_thread(client.get, "/")
    assert (answer.status, answer.fields["location"]) == (303, "/sign-in")


async def test_signing_out(bed: CommandBed) -> None:
    client = await signed_in(bed, "user")
    kept = client.cookie
    secret = await on_thread(client.secret, "/")
    assert (await on_thread(functools.partial(client.post, "/sign-out", secret=secret))).status == 303
    client.cookie = kept
    assert (await on_thread(client.get, "/")).status == 303


async def test_wake_sleep_and_what_came_of_them(bed: CommandBed, caplog: pytest.LogCaptureFixture) -> None:
    client = await signed_in(bed, "manager")
    assert "The wake was asked for" in await done(client, await act(client, f"{SATELLITE}/wake"))
    await reached(bed, SatelliteState.OPERATIONAL)
    await until(client, SATELLITE, f'data-state="{SatelliteState.OPERATIONAL.value}"')
    assert "It goes to sleep" in await done(client, await act(client, f"{SATELLITE}/sleep"))
    await reached(bed, SatelliteState.SLEEP)
    lines = [each.__dict__["fields"] for each in caplog.records if each.message == "done from the page"]
    assert [(each["action"], each["subject"], each["principal"]) for each in lines] == [
        ("wake", "acme/builder", "manager"),
        ("sleep", "acme/builder", "manager"),
    ]


async def until(client: PageClient, path: str, words: str, status: int = 200) -> str:
    """The page once it has the words: looks are shared for a second."""
    with trio.fail_after(60):
        while True:
            answer: PageAnswer = await on_thread(client.get, path)
            if answer.status == status and words in answer.text:
                return answer.text
            await trio.sleep(0.1)


async def test_a_satellite_in_use_is_not_put_to_sleep(bed: CommandBed) -> None:
    client = await signed_in(bed, "manager")
    with bed.channel() as echo:
        await on_thread(echo, b"1")
        assert "Not done:" in await done(client, await act(client, f"{SATELLITE}/sleep"))
        assert bed.state() is SatelliteState.OPERATIONAL


async def test_cutting_all_connections_and_one(bed: CommandBed) -> None:
    client = await signed_in(bed, "manager")
    with bed.channel() as echo:
        await on_thread(echo, b"1")
        [record] = [each for each in bed.daemon.edge.book.all_open() if str(each.satellite) == str(KEY)]
        text = await page(client, f"/connections/{record.id}")
        assert "it is still open" in text
        answer = await act(client, f"/connections/{record.id}/cut")
        assert "The connection was cut" in await done(client, answer)
        with trio.fail_after(30):
            while bed.daemon.handoff.live:
                await trio.sleep(0.02)
        assert "cut by the operator" in await page(client, f"/connections/{record.id}")
        await on_thread(echo, b"2")
        assert "1 connections" in await done(client, await act(client, f"{SATELLITE}/cut"))
        with trio.fail_after(30):
            while bed.daemon.handoff.live:
                await trio.sleep(0.02)
    assert bed.daemon.handoff.cut_by_operator == 2


async def test_drain_lets_clients_finish_and_then_sleeps(bed: CommandBed) -> None:
    client = await signed_in(bed, "manager")
    with bed.channel() as echo:
        await on_thread(echo, b"1")
        assert "takes no more clients" in await done(client, await act(client, f"{SATELLITE}/drain"))
        assert await on_thread(echo, b"2") == b"2", "who is connected goes on"
        with bed.channel() as refused, pytest.raises(grpc.RpcError, match="its operator has drained it"):
            await on_thread(refused, b"3")
        assert bed.state() is SatelliteState.OPERATIONAL
        assert "Let clients in again" in await page(client, SATELLITE)
    await reached(bed, SatelliteState.SLEEP)
    await until(client, SATELLITE, "its operator has drained it")
    assert "takes clients again" in await done(client, await act(client, f"{SATELLITE}/admit"))
    with bed.channel() as echo:
        assert await on_thread(echo, b"4") == b"4"


async def test_only_the_operator_drains_the_host(bed: CommandBed) -> None:
    client = operator(bed)
    assert "takes no more clients" in await page(client, "/drain")
    answer = await act(client, "/drain")
    assert answer.status == 303
    assert bed.daemon.drain.is_set()


async def test_a_connections_fate_is_for_its_own_and_for_managers(bed: CommandBed) -> None:
    user, manager = await signed_in(bed, "user"), await signed_in(bed, "manager")
    with bed.channel(token="manager") as echo:
        await on_thread(echo, b"1")
        [record] = [each for each in bed.daemon.edge.book.all_open() if each.principal == "manager" and each.satellite]
        for path in ("/", "/connections", "/parts/connections", SATELLITE):
            assert record.id in await page(manager, path)
            assert record.id not in await page(user, path)
        await page(user, f"/connections/{record.id}", 404)
        await page(user, f"/connections/{record.id}/cut", 404)
        answer = await on_thread(manager.get, f"/connections?id=+{record.id}+")
        assert answer.fields["location"] == f"/connections/{record.id}"
    for path, status in (
        ("/connections/nonsense", 400),
        ("/connections?id=%3Cb%3E", 400),
        ("/connections/1s6xaq-8x0a-szxkc", 404),
    ):
        assert "<b>" not in await page(manager, path, status)


async def test_what_peers_choose_is_escaped(bed: CommandBed) -> None:
    client = operator(bed)
    book = bed.daemon.edge.book
    with book.open('<script>alert("peer")</script>') as record:
        record.principal = "<img src=x onerror=alert(1)>"
        for path in (
            "/",
            "/connections",
            f"/connections/{record.id}",
            "/connections?satellite=%22%3E%3Cb%3E&principal=%27",
        ):
            text = await page(client, path)
            assert "<script>alert" not in text
            assert "<img src=x" not in text
            assert '"><b>' not in text


async def test_a_failure_in_a_page_ends_that_request_alone(bed: CommandBed, monkeypatch: pytest.MonkeyPatch) -> None:
    client = operator(bed)

    async def broken(*_arguments: object, **_more: object) -> None:
        raise ZeroDivisionError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(bed.daemon.operations, "activity", broken)
        await until(client, "/", "log says why", 500)
        assert "acme/builder" not in await page(client, "/parts/held", 500)
        await page(client, "/connections")
    await until(client, "/", "acme/builder")


async def test_the_ledgers_past_is_shown_as_report_adds_it_up(bed: CommandBed) -> None:
    client = operator(bed)
    with bed.channel() as echo:
        await on_thread(echo, b"1")
    with bed.channel("broken") as echo, pytest.raises(grpc.RpcError):
        await on_thread(echo, b"2")
    await until(client, "/history?span=1d", "<dt>Wakes</dt><dd>1</dd>")
    text = await until(client, "/history?span=1d", "<dt>Failed wakes</dt><dd>1</dd>")
    assert 'aria-label="acme/builder: awake' in text
    failures = text.partition('id="h-failures"')[2]
    assert "acme/<wbr>broken" in failures
    for span in ("7d", "30d", "365d", "nonsense"):
        await page(client, f"/history?span={span}")
    assert "acme/broken" in await page(await signed_in(bed, "user"), "/history")


def test_data_planes_of_both_forms(tmp_path: Path) -> None:
    for form, words in (("inside", "in this process"), ("process", "a process of its own")):
        path = tmp_path / f"{form}.sock"
        settings = f'[admin]\npath = "{path}"\n'
        with EdgeHost([DemoSatellite("builder")], sleep_after_s=600, settings=settings, data_plane=form) as host:
            text = PageClient(path).get("/parts/host").text
            assert words in text
            assert f"<td>{VERSION}</td><td>accepts</td>" in text
            assert f"<dt>Process</dt><dd>{host.pid}</dd>" in text
            assert (f'<td class="number wide">{host.pid}</td>' in text) is (form == "inside")
        assert not path.exists(), "the socket's file goes with the daemon"


class Events:
    """A stream of events, read by lines. Blocks."""

    def __init__(self, client: PageClient, address: tuple[str, int]) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=60)
        self._connection.request("GET", "/events", headers={"Cookie": client.cookie})
        self.answer = self._connection.getresponse()

    def until(self, kind: str, words: str) -> object:
        """The next event of the kind whose data has the words."""
        name = ""
        while line := self.answer.readline().decode():
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data" and name == kind and words in value:
                return json.loads(value)
        return None

    def close(self) -> None:
        self._connection.close()


def address_of(bed: CommandBed) -> tuple[str, int]:
    [sock] = [each for each in bed.daemon.ports.admin.all if each.family == socket.AF_INET]
    host, port = sock.getsockname()
    return str(host), int(port)


async def test_changes_come_as_events(bed: CommandBed) -> None:
    client = await signed_in(bed, "user")
    events = await on_thread(Events, client, address_of(bed))
    assert events.answer.getheader("content-type") == "text/event-stream"
    first = await on_thread(events.until, "cells", "acme/builder:state")
    assert isinstance(first, dict)
    assert first["acme/builder:state"] == "sleep"
    with bed.channel() as echo:
        await on_thread(echo, b"1")
        changed = await on_thread(events.until, "cells", "operational")
        assert isinstance(changed, dict)
        assert "acme/broken:state" not in changed, "only what has changed is told"
        await on_thread(events.until, "stale", "connections")
    tokens = [each for each in bed.daemon.config.token if each.name != "user"]
    bed.daemon.account_parts.admission.replace_configured(tokens, ())
    assert await on_thread(events.until, "end", "signed out") == "signed out"
    events.close()
