"""`bentpipe reload`: another configuration is taken over while clients are connected, all of it or nothing."""

import concurrent.futures
import contextlib
import hashlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from beds.hosts.edge_daemons import EdgeDaemon, edge_daemon, token_of, wait
from beds.hosts.form import in_form, listener_address
from beds.peers.clients import CallError, GrpcioClient
from beds.ports import free_port
from beds.programs import BENTPIPE
from bentpipe.daemon.service.control import CREDENTIAL_NAMES, ControlError, Fields, ask

NOT_FOUND, UNAVAILABLE, UNAUTHENTICATED, FAILED_PRECONDITION = 5, 14, 16, 9
DEADLINE_S = 60.0


def satellite(name: str, *, boot_s: float = 0.0, more: str = "", arguments: str = "") -> str:
    command = [sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}", "--boot", str(boot_s)]
    words = ", ".join(f'"{each}"' for each in command)
    return (
        f'\n[[satellite]]\norg = "acme"\nname = "{name}"\nsleep_mode = "stop"\nmin_awake = 0\n{more}\n'
        f"[satellite.process]\ncommand = [{words}{arguments}]\n"
    )


def token(name: str, org: str = "acme") -> str:
    digest = hashlib.sha256(token_of(name).encode()).hexdigest()
    return f'\n[[token]]\nname = "{name}"\nhash = "sha256:{digest}"\ngrants = ["{org}/*"]\n'


class Bed:
    """A running daemon with its files: a plain listener and one with TLS, and a control socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = free_port()
        self.more_metrics = ""
        self.addresses = listener_address(), listener_address()
        self.issue()
        self.satellites = satellite("a") + satellite("slow", boot_s=2.0)
        self.tokens = token("acme")
        self.sections = ""
        self.listeners = ""
        self.daemon: EdgeDaemon

    def issue(self, *, fits: bool = True) -> bytes:
        """Put a new certificate and its key into the files. Returns its authority."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        (self.folder / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
        other = issued if fits else trustme.CA().issue_cert("localhost")
        (self.folder / "key.pem").write_bytes(other.private_key_pem.bytes())
        return authority.cert_pem.bytes()

    @property
    def text(self) -> str:
        plain, tls = self.addresses
        text = (
            f'[daemon]\nlog_format = "json"\ndrain_deadline = "100ms"\n[control]\npath = "{self.folder}/control"\n'
            f'[metrics]\naddress = "127.0.0.1:{self.metrics}"\n{self.more_metrics}'
            f'[store]\npath = "{self.folder}/edge.sqlite"\n'
            f'[[listener]]\naddress = "{plain}"\n[[listener]]\naddress = "{tls}"\n'
            f'[listener.tls]\ncertificate = "{self.folder}/cert.pem"\nkey = "{self.folder}/key.pem"\n'
            f"{self.listeners}{self.sections}{self.tokens}{self.satellites}"
        )
        return in_form(text, self.folder / "edge")

    def write(self) -> None:
        (self.folder / "edge.toml").write_text(self.text)

    def reload(self, *options: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [BENTPIPE, "reload", *options, self.folder / "edge.toml"]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    def ask_reload(self) -> str:
        """Write the configuration and reload without a process for the command. Returns what is wrong, or nothing."""
        self.write()
        try:
            ask(self.folder / "control", "reload", {}, deadline_s=DEADLINE_S)
        except ControlError as exc:
            return str(exc)
        return ""

    def reloaded(self, *options: str) -> str:
        """Write the configuration and reload. Returns what was said."""
        self.write()
        done = self.reload(*options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self) -> str:
        self.write()
        done = self.reload()
        assert done.returncode == 2, done.stdout
        return done.stderr

    def metric(self, name: str) -> float:
        found = self.metric_if_told(name)
        assert found is not None, name
        return found

    def metric_if_told(self, name: str) -> float | None:
        """A sum by name is not there before anything has counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=DEADLINE_S) as answer:
            found = re.search(rf"^bentpipe_{re.escape(name)} ([\d.e+]+)$", answer.read().decode(), re.MULTILINE)
        return None if found is None else float(found[1])

    def why(self) -> list[Fields]:
        """The connections that the daemon knows, as `bentpipe why` asks for them."""
        found = ask(self.folder / "control", "why", {"newest": 100, "satellite": "", "principal": "acme"})
        connections = found["connections"]
        assert isinstance(connections, list)
        return connections

    def client(self, name: str, who: str = "acme", *, port: int | None = None, ca: bytes | None = None) -> GrpcioClient:
        metadata = (("satellite_name", name), ("satellite_org", "acme"), ("satellite_token", token_of(who)))
        return GrpcioClient(self.daemon.port if port is None else port, ca, metadata)

    def ask(self, name: str, who: str = "acme") -> str:
        with contextlib.closing(self.client(name, who)) as client:
            return client.unary("Echo", b"hello").decode()

    def ended(self, name: str, who: str = "acme") -> CallError:
        with pytest.raises(CallError) as error:
            self.ask(name, who)
        return error.value

    @property
    def tls_port(self) -> int:
        ports = [int(str(each["port"])) for each in self.daemon.records() if each.get("message") == "listening"]
        return ports[1]

    def states(self, name: str) -> list[str]:
        records = self.daemon.records()
        return [str(each["after"]) for each in records if each.get("satellite") == f"acme/{name}" and "after" in each]


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    with edge_daemon(tmp_path, made.text) as daemon:
        made.daemon = daemon
        assert daemon.port
        wait(lambda: (tmp_path / "control").exists(), "the control socket is there")
        yield made


def test_tokens_and_satellites_come_and_go(bed: Bed) -> None:
    assert bed.ended("b", "new").code == UNAUTHENTICATED
    folder = bed.folder / "edge.d"
    folder.mkdir()
    (folder / "b.toml").write_text(satellite("b") + token("new"))
    said = bed.reloaded()
    assert "satellite acme/b: added (at once)" in said
    assert "token new: added (at once)" in said
    assert bed.ask("b", "new") == "hello"
    (folder / "b.toml").write_text(satellite("b"))
    assert "token new: removed (at once)" in bed.reloaded()
    assert bed.ended("b", "new").code == UNAUTHENTICATED
    assert bed.ask("b") == "hello"
    assert "starting" in bed.states("b")


def test_a_satellite_that_is_removed_while_in_use_lets_its_clients_finish_and_then_sleeps(bed: Bed) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.closing(bed.client("a")) as used:
        assert used.unary("Echo", b"hello") == b"hello"
        call = pool.submit(used.unary, "Sleep", b"2")
        bed.satellites = satellite("slow")
        said = bed.reloaded()
        assert "satellite acme/a: removed" in said
        assert "waits: satellite acme/a" in said
        assert bed.metric("satellites_awaiting_change") >= 1
        refused = bed.ended("a")
        assert "taken out of the edge host's configuration" in refused.details
        assert call.result(DEADLINE_S) == b"awake"
    wait(lambda: bed.daemon.said(message="satellite of the configuration given up"), "it is given up")
    assert bed.states("a")[-3:] == ["stopping", "sleep", "offline"]
    assert bed.ended("a").code == NOT_FOUND
    bed.satellites += satellite("a")
    bed.reloaded()
    assert bed.ask("a") == "hello"


def test_a_removed_satellite_that_comes_back_before_it_sleeps_is_kept(bed: Bed) -> None:
    with contextlib.closing(bed.client("a")) as used:
        used.unary("Echo", b"hello")
        before = bed.satellites
        bed.satellites = satellite("slow", boot_s=2.0)
        bed.reloaded()
        bed.satellites = before
        bed.reloaded()
        assert bed.ask("a") == "hello"
        assert used.unary("Echo", b"again") == b"again"
    assert bed.states("a").count("starting") == 1
    assert bed.metric("satellites_awaiting_change") == 0


def test_a_changed_machine_is_taken_up_when_the_old_one_sleeps(bed: Bed) -> None:
    with contextlib.closing(bed.client("a")) as used:
        assert used.unary("Echo", b"hello") == b"hello"
        bed.satellites = satellite("a", more='sleep_after = "1s"', arguments=', "--fail"') + satellite(
            "slow", boot_s=2.0
        )
        said = bed.reloaded()
        assert "satellite acme/a.sleep_after: 1800 → 1 (at once)" in said
        assert "waits: satellite acme/a: as soon as the satellite sleeps and nobody uses it" in said
        assert used.unary("Echo", b"still the old one") == b"still the old one"
    wait(lambda: bed.daemon.said(message="satellite of the configuration taken up"), "it is taken up")
    refused = bed.ended("a")
    assert refused.code != 0, "the new command fails at once"
    assert bed.states("a").count("starting") == 2


def test_limits_hold_at_once(bed: Bed) -> None:
    bed.sections = "[limits]\nmax_connections_per_principal = 1\n[budget]\nmax_awake = 1\n"
    bed.reloaded()
    with contextlib.closing(bed.client("a")) as used:
        assert used.unary("Echo", b"hello") == b"hello"
        assert "max_connections_per_principal" in bed.ended("a").details
        bed.sections = "[budget]\nmax_awake = 1\n"
        bed.reloaded()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            queued = pool.submit(bed.ask, "slow")
            wait(lambda: bed.metric("budget_queue") == 1, "it waits for a place in the budget")
            assert not queued.done()
            bed.sections = ""
            bed.reloaded()
            assert queued.result(DEADLINE_S) == "hello"


def test_certificates_are_read_again(bed: Bed) -> None:
    authority = bed.issue()
    bed.reloaded()
    with contextlib.closing(bed.client("a", port=bed.tls_port, ca=authority)) as client:
        assert client.unary("Echo", b"hello") == b"hello"
        bed.issue(fits=False)
        said = bed.refused()
        assert "nothing has changed" in said
        assert "is not the key of" in said
        assert client.unary("Echo", b"still") == b"still"
    with contextlib.closing(bed.client("a", port=bed.tls_port, ca=authority)) as client:
        assert client.unary("Echo", b"with the old pair") == b"with the old pair"


def test_a_credential_comes_with_the_request_and_stays_for_later_reloads(tmp_path: Path) -> None:
    """systemd's own copy of a credential is that of the start: root's command passes the newer one as a descriptor."""
    made = Bed(tmp_path)
    given = tmp_path / "credentials"
    given.mkdir()
    (given / "tls.key").write_bytes((tmp_path / "key.pem").read_bytes())
    text = made.text.replace(f'"{tmp_path}/key.pem"', '"credential:tls.key"')
    with edge_daemon(tmp_path, text, environment={"CREDENTIALS_DIRECTORY": str(given)}) as daemon:
        made.daemon = daemon
        assert daemon.port
        authority = made.issue()
        with pytest.raises(ControlError, match="nothing has changed"):
            ask(tmp_path / "control", "reload", {})
        for fields, files in (({}, 1), ({CREDENTIAL_NAMES: ["tls.key", "other"]}, 1), ({CREDENTIAL_NAMES: "x"}, 0)):
            with (tmp_path / "key.pem").open("rb") as key, pytest.raises(ControlError, match="a name for each file"):
                ask(tmp_path / "control", "reload", fields, files=[key.fileno()] * files)
        with (tmp_path / "key.pem").open("rb") as key:
            answer = ask(tmp_path / "control", "reload", {CREDENTIAL_NAMES: ["tls.key"]}, files=[key.fileno()])
        assert answer["changes"] == []
        assert ask(tmp_path / "control", "reload", {})["changes"] == []
        with contextlib.closing(made.client("a", port=made.tls_port, ca=authority)) as client:
            assert client.unary("Echo", b"hello") == b"hello"


Mistake = Callable[[Bed], str]
MISTAKES: dict[str, tuple[Mistake, tuple[str, ...]]] = {
    "unknown key": (lambda bed: bed.text + "nothing = 1\n", ("unknown key",)),
    "not TOML": (lambda bed: bed.text + "[[", ("not TOML",)),
    "cut off": (lambda bed: bed.text[: bed.text.index("[metrics]")], ("listener: missing",)),
    "a key that needs a restart": (
        lambda bed: bed.text.replace("edge.sqlite", "x.sqlite") + "[engine]\nthreads = 7\n",
        (
            "engine.threads: 0 → 7 (needs a restart: the engine's threads and pipes are made at the start)",
            "(needs a restart: the store is open, and has what was written so far)",
            "cannot change in a running daemon",
        ),
    ),
    "a listener": (
        lambda bed: bed.text + '[[listener]]\naddress = "127.0.0.1:1"\n',
        ("listener 127.0.0.1:1: added (needs a restart: the sockets of clients are opened at the start)",),
    ),
    "the first EC2 machine": (
        lambda bed: bed.text + '[[satellite]]\norg = "acme"\nname = "e"\nprovider = "ec2"\n[satellite.ec2]\n',
        ("satellite acme/e: the first machine of provider 'ec2'",),
    ),
    "more connections than descriptors": (
        lambda bed: bed.text + "[limits]\nmax_connections = 1000000000\n",
        ("max_connections",),
    ),
}


def test_a_mistake_changes_nothing(bed: Bed) -> None:
    good = bed.text
    # A good change beside the mistake is not taken over either.
    bed.tokens += token("beside")
    for number, (name, (mistake, words)) in enumerate(MISTAKES.items()):
        (bed.folder / "edge.toml").write_text(mistake(bed))
        done = bed.reload(*(("--dry-run",) if number == 0 else ()))
        assert done.returncode == 2, (name, done.stdout)
        assert "nothing has changed" in done.stderr
        for each in words:
            assert each in done.stderr, (name, done.stderr)
        assert bed.ended("a", "beside").code == UNAUTHENTICATED, name
        assert bed.metric('configuration_reloads_total{result="failed"}') == number
    assert bed.metric("configuration_reload_failed") == 1
    assert bed.ask("a") == "hello"
    (bed.folder / "edge.toml").write_text(good)
    assert bed.reload().returncode == 0
    assert bed.metric("configuration_reload_failed") == 0


def served_at(port: int) -> bool:
    """Whether metrics or a page are served there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def page_at(path: Path) -> str:
    """The answer's first line, by the Unix socket of the page."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return client.makefile("rb").readline().decode()


def test_the_metrics_move_and_tell_more_and_their_counters_go_on(bed: Bed) -> None:
    assert bed.ask("a") == "hello"
    accepted = bed.metric("connections_accepted_total")
    first, bed.metrics = bed.metrics, free_port()
    said = bed.reloaded()
    assert f"metrics.address: 127.0.0.1, {first} → 127.0.0.1, {bed.metrics} (at once)" in said
    wait(lambda: not served_at(first), "they are served there no more")
    assert bed.metric("connections_accepted_total") == accepted
    bed.more_metrics = "per_satellite = true\nper_org = true\n"
    bed.reloaded()
    assert bed.ask("a") == "hello"
    wait(lambda: bed.metric_if_told('satellite_connections_total{satellite="acme/a"}') == 1, "the connection is over")
    assert bed.metric('org_connections_total{org="acme"}') == 1
    bed.reloaded()
    assert bed.metric('org_connections_total{org="acme"}') == 1, "what was told already goes on"


def test_the_page_comes_moves_and_goes(bed: Bed) -> None:
    path, port = bed.folder / "page.sock", free_port()
    bed.sections = f'[admin]\npath = "{path}"\n'
    assert "admin: added (at once)" in bed.reloaded()
    assert page_at(path) == "HTTP/1.1 200 OK\r\n"
    assert bed.metric('admin_answers_total{status="200"}') == 1
    bed.sections += f'address = "127.0.0.1:{port}"\n'
    bed.reloaded()
    assert served_at(port)
    assert page_at(path).startswith("HTTP/1.1 200")
    bed.sections = f'[admin]\naddress = "127.0.0.1:{port}"\n'
    bed.reloaded()
    wait(lambda: not path.exists(), "it is served there no more")
    bed.sections = ""
    assert "admin: removed (at once)" in bed.reloaded()
    wait(lambda: not served_at(port), "there is no page any more")


def test_records_are_kept_from_a_reload_on_and_no_longer_after_another(bed: Bed) -> None:
    bed.sections = "[records]\nkeep = 0\n"
    bed.reloaded()
    bed.sections = "[records]\nkeep = 10\n"
    bed.reloaded()
    for _ in range(3):
        assert bed.ask("a") == "hello"
    wait(lambda: bed.metric("records_kept_total") == 3, "they are written")
    assert str(bed.why()).count("acme/a") == 3
    bed.sections = "[records]\nkeep = 2\n"
    bed.reloaded()
    assert bed.ask("a") == "hello"
    wait(lambda: bed.metric("records_kept_total") == 4, "the fourth is written, and only two stay")
    assert str(bed.why()).count("acme/a") == 2
    bed.sections = "[records]\nkeep = 0\n"
    bed.reloaded()
    assert bed.ask("a") == "hello"
    wait(lambda: not bed.why(), "none are kept, and all connections are over")
    assert bed.metric("records_kept_total") == 4, "the counter does not fall"


def test_probes_are_told_or_not(bed: Bed) -> None:
    def probe() -> None:
        socket.create_connection(("127.0.0.1", bed.daemon.port), DEADLINE_S).close()

    def ended() -> float:
        return bed.metric('connections_ended_total{outcome="probe"}')

    probe()
    wait(lambda: bed.daemon.said(message="connection", end="probe"), "a probe has a line")
    told = len([each for each in bed.daemon.records() if each.get("end") == "probe"])
    bed.sections = "[records]\nprobes = false\n"
    bed.reloaded()
    before = ended()
    probe()
    wait(lambda: ended() == before + 1, "it is counted")
    bed.ask("a")
    wait(lambda: bed.daemon.said(message="connection", satellite="acme/a"), "the log is written")
    assert len([each for each in bed.daemon.records() if each.get("end") == "probe"]) == told


def test_what_cannot_be_opened_changes_nothing(bed: Bed) -> None:
    """A port that is taken, a folder that is not there, a store that is something else: the old ones stay in force."""
    bed.sections = "[records]\nkeep = 0\n"
    bed.reloaded()
    assert bed.ask("a") == "hello"
    (bed.folder / "state").mkdir()
    old, page = bed.metrics, bed.folder / "page.sock"
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        bed.metrics = int(stranger.getsockname()[1])
        bed.sections += f'[admin]\npath = "{page}"\n'
        bed.tokens += token("beside")
        assert f"metrics.address: cannot listen on 127.0.0.1:{bed.metrics}: Address already in use" in bed.refused()
    assert not page.exists(), "what was opened beside it is closed again"
    taken, bed.metrics = bed.metrics, old
    assert not served_at(taken)
    assert bed.metric('configuration_reloads_total{result="failed"}') == 1
    bed.sections = f'[records]\nkeep = 0\n[admin]\npath = "{bed.folder}/absent/page.sock"\n'
    assert "No such file or directory" in bed.refused()
    (bed.folder / "connections.sqlite").write_bytes(b"something else" * 100)
    moved, bed.metrics = old, free_port()
    bed.sections = "[records]\nkeep = 5\n"
    assert "records.keep: " in (said := bed.refused())
    assert "connections.sqlite" in said
    assert not served_at(bed.metrics)
    bed.metrics = moved
    assert bed.metric("configuration_reload_failed") == 1
    assert bed.ended("a", "beside").code == UNAUTHENTICATED
    assert bed.ask("a") == "hello"


def test_a_dry_run_tells_and_changes_nothing(bed: Bed) -> None:
    bed.tokens += token("new")
    bed.satellites = satellite("a", more='sleep_after = "1h"')
    said = bed.reloaded("--dry-run")
    assert "token new: added (at once)" in said
    assert "satellite acme/a.sleep_after: 1800 → 3600 (at once)" in said
    assert "satellite acme/slow: removed (new clients are refused; if nobody uses it any more" in said
    assert "would change" in said
    assert bed.ended("a", "new").code == UNAUTHENTICATED
    assert bed.ask("slow") == "hello"
    assert bed.metric('configuration_reloads_total{result="ok"}') == 0


def test_sighup_does_the_same_and_tells_it_in_the_log(bed: Bed) -> None:
    bed.tokens += token("new")
    bed.write()
    bed.daemon.process.send_signal(signal.SIGHUP)
    wait(lambda: bed.daemon.said(message="reloaded", changes="1"), "it is reloaded")
    assert bed.ask("a", "new") == "hello"
    (bed.folder / "edge.toml").write_text("[[")
    bed.daemon.process.send_signal(signal.SIGHUP)
    wait(lambda: bed.daemon.said(message="not reloaded", reason="not TOML"), "it is not reloaded")
    assert bed.ask("a", "new") == "hello"


def test_without_a_daemon_the_command_says_so(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    assert "no daemon answers at" in bed.refused()


class Load:
    """Clients of every kind, in threads, until the block ends. Each failure is kept."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._over = threading.Event()
        self.failures: list[BaseException] = []
        self.done = dict.fromkeys(("unary", "bulk", "new", "held"), 0)

    def _again_and_again(self, kind: str, act: Callable[[], object]) -> None:
        while not self._over.is_set():
            try:
                act()
            except BaseException as exc:
                self.failures.append(exc)
                return
            self.done[kind] += 1

    def _held(self) -> None:
        self._bed.ask("slow")
        time.sleep(1.5)

    def _bulk(self, client: GrpcioClient) -> None:
        sent, came = client.bulk(8 << 20, 1 << 20)
        assert sent == came

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        bed = self._bed
        with (
            contextlib.closing(bed.client("a")) as one,
            contextlib.closing(bed.client("a")) as other,
            concurrent.futures.ThreadPoolExecutor(4) as pool,
        ):
            pool.submit(self._again_and_again, "unary", lambda: one.unary("Echo", b"hello"))
            pool.submit(self._again_and_again, "bulk", lambda: self._bulk(other))
            pool.submit(self._again_and_again, "new", lambda: bed.ask("a"))
            # It sleeps at once when nobody uses it, so that each call is held while it boots.
            pool.submit(self._again_and_again, "held", self._held)
            try:
                yield
            finally:
                self._over.set()


def told_otherwise(bed: Bed, number: int) -> str:
    """Records, traces and page that are other ones at each reload. Nobody listens where the traces go."""
    records = f"[records]\nkeep = {(0, 50, 100)[number % 3]}\nprobes = {str(number % 2 == 0).lower()}\n"
    traces = f'[traces]\nendpoint = "http://127.0.0.1:9/{number // 2}"\nratio = 0.{number % 10}\n'
    page = f'[admin]\npath = "{bed.folder}/page-{number // 3}.sock"\n'
    bed.more_metrics = f"per_satellite = {str(number % 3 == 0).lower()}\nper_org = {str(number % 2 == 0).lower()}\n"
    return records + (traces if number % 4 else "") + (page if number % 5 else "")


@pytest.mark.parametrize("reloads", [50, pytest.param(400, marks=pytest.mark.slow)])
def test_reloads_under_load_disturb_no_connection(bed: Bed, reloads: int) -> None:
    """Good and wrong ones in turn: no call fails, and every satellite is woken once for each of its sleeps."""
    slow = satellite("slow", boot_s=1.0, more='sleep_after = "500ms"')
    load = Load(bed)
    with load.running():
        for number in range(reloads):
            wrong = number % 5 == 4
            bed.tokens = token("acme") + "".join(token(f"t{each}") for each in range(number % 3))
            bed.sections = f"[limits]\nmax_held = {1000 + number}\n" + ("[engine]\nthreads = 9\n" if wrong else "")
            bed.sections += told_otherwise(bed, number)
            before, bed.metrics = bed.metrics, (free_port() if number % 4 == 1 else bed.metrics)
            more = f'sleep_after = "{20 + number}m"'
            bed.satellites = satellite("a", more=more) + slow + (satellite(f"s{number}") if number % 2 else "")
            bed.issue()
            assert ("engine.threads" in bed.ask_reload()) is wrong
            bed.metrics = before if wrong else bed.metrics
    assert not load.failures, load.failures
    assert all(load.done.values()), load.done
    assert bed.states("a").count("starting") == 1
    assert bed.metric('configuration_reloads_total{result="failed"}') == reloads // 5
    assert bed.metric('configuration_reloads_total{result="ok"}') == reloads - reloads // 5
