"""The service as one process from day to day, under real systemd: reloads, renewals, mistakes, crashes, a stuck daemon.

The tests of a suite are one story on one host, in their order. `test_package` has installation, upgrade and removal.
"""

import json

import pytest

from beds.booted.acme import pebble
from beds.booted.renewals import install_as_acm_exports, renew_by_certbot, run_hook, use_one_file
from beds.booted.story import DEADLINE_S, FILE, Story, begun, ended
from beds.pages.troubleshooting import pattern_of
from beds.peers.builds import Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

ONE_PROCESS = True
BUILD_S = 5.0
RESTARTS = 12
"""More than systemd's own limit of starts (5 in 10 s) allows."""
EXPOSURE = 1.5
KEEPER_EXPOSURE = 2.2
"""The keeper becomes the user of each satellite, and what builds may need stays open to them: docs/threat-model.md."""
ADDED = """
[[satellite]]
org = "acme"
name = "second"
[satellite.process]
command = ["/usr/lib/bentpipe/bin/python3", "-I", "-m", "bentpipe.daemon.testbed.satellite", "{port}"]
"""
METADATA = "169.254.169.254"
"""EC2's instance metadata service."""
ASK_METADATA = "metadata: {}"
SPY = f"""
import os, socket
try:
    socket.create_connection(("{METADATA}", 80), 5)
    said = "connected"
except OSError as error:
    said = type(error).__name__
users = {{os.stat("/proc/" + pid).st_uid for pid in os.listdir("/proc") if pid.isdigit()}}
print("{ASK_METADATA}".format(said) + ", " + str(len(users)) + " user", flush=True)
raise SystemExit(3)
"""


def test_every_unit_is_closed_as_far_as_its_work_allows(story: Story) -> None:
    host = story.host
    closed = "systemd-analyze security --no-pager --threshold=$2 $1"
    for unit, most in (
        ("bentpipe.service", EXPOSURE),
        ("bentpipe-dataplane@a.service", EXPOSURE),
        ("bentpipe-keeper.service", KEEPER_EXPOSURE),
    ):
        host.run(closed, unit, str(round(most * 10)))
    control = host.run("cat /usr/lib/systemd/system/bentpipe.service")
    host.put("/run/systemd/system/bentpipe-control.service", control.encode())
    try:
        host.run(f"systemctl daemon-reload; {closed}", "bentpipe-control.service", str(round(EXPOSURE * 10)))
    finally:
        host.run("rm /run/systemd/system/bentpipe-control.service; systemctl daemon-reload")


def test_systemd_finds_nothing_to_warn_of(story: Story) -> None:
    """Neither in the units nor in what the package has made, such as the mode of /etc/bentpipe."""
    said = story.host.run(
        "journalctl --no-pager --quiet --priority=warning _PID=1 | grep --ignore-case bentpipe || true"
    )
    assert said == ""


def test_what_the_keepers_unit_closes_to_satellites(story: Story) -> None:
    """The metadata service, which gives away the role of an EC2 host; other users' processes; namespaces; other users."""
    host = story.host
    host.run("ip address add $1/32 dev lo", METADATA)
    assert ASK_METADATA.format("ConnectionRefusedError") in host.run('python3 -c "$1" || true', SPY)
    commands = {
        "spy": ["python3", "-c", SPY, "{port}"],
        "unshared": ["unshare", "--pid", "--fork", "sleep", "{port}"],
        "other": ["setpriv", "--reuid=0", "--clear-groups", "sleep", "{port}"],
    }
    sections = (
        f'[[satellite]]\norg = "acme"\nname = "{name}"\n[satellite.process]\ncommand = {json.dumps(command)}\n'
        for name, command in commands.items()
    )
    host.put("/etc/bentpipe/bentpipe.d/30-closed.toml", "".join(sections).encode())
    try:
        said = host.run("bentpipe check 2>&1; systemctl reload bentpipe.service")
        assert "'unshare' would end at once" in said
        assert "'setpriv' would end at once" in said
        assert ASK_METADATA.format("TimeoutError") + ", 1 user" in ended(story.build(0, "acme/spy"))
        for name, mistake in (
            ("other", "a satellite's program changes its user, under the units"),
            ("unshared", "a satellite's program makes namespaces, under the units"),
        ):
            said = ended(story.build(0, f"acme/{name}"))
            assert pattern_of(mistake).search(said), said
    finally:
        host.run("rm /etc/bentpipe/bentpipe.d/30-closed.toml; ip address del $1/32 dev lo", METADATA)
        host.run("systemctl reload bentpipe.service")


def test_a_reload_takes_a_new_satellite_over_and_disturbs_nobody(story: Story) -> None:
    host, before = story.host, story.show("MainPID")
    running = begun(story.build(BUILD_S))
    host.put("/etc/bentpipe/bentpipe.d/10-second.toml", ADDED.encode())
    said = host.run("bentpipe reload --dry-run")
    assert "acme/second" in said
    assert "no such satellite" in ended(story.build(0, "acme/second"))
    host.run("systemctl reload bentpipe.service")
    assert ended(story.build(0, "acme/second")) == "awake"
    assert ended(running) == "awake"
    assert story.show("StatusText").startswith("reloaded")
    assert story.show("MainPID") == before


@pytest.mark.parametrize(
    ("path", "line"), [(FILE, "mistake = 1"), ("/etc/bentpipe/bentpipe.d/20-more.toml", "[[satellite]]\norg = 7")]
)
def test_a_wrong_reload_fails_in_words_and_changes_nothing(story: Story, path: str, line: str) -> None:
    host, before = story.host, story.show("MainPID")
    running = begun(story.build(BUILD_S))
    host.run('cp $1 /root/good 2>/dev/null || rm -f /root/good; echo "$2" >>$1', path, line)
    try:
        code, _ = host.attempt("systemctl reload bentpipe.service")
        assert code != 0
        code, said = host.attempt("bentpipe reload")
        assert (code, path in said) == (2, True), said
        status = story.show("StatusText")
        assert "the last reload failed, and nothing has changed: " in status
        assert path in status
        assert story.show("ActiveState") == "active"
        assert ended(running) == "awake"
        assert ended(story.build(0)) == "awake"
        assert story.show("MainPID") == before
    finally:
        host.run("if [ -e /root/good ]; then cp /root/good $1; else rm $1; fi", path)
    host.run("systemctl reload bentpipe.service")
    assert story.show("StatusText").startswith("reloaded")


def test_no_certificate_is_shown_without_its_key(story: Story) -> None:
    """Two files are replaced one after the other, and a reload comes between."""
    host, before = story.host, story.shown_serial()
    chain, key = story.issue()
    host.put("/etc/bentpipe/tls.pem", chain)
    assert host.attempt("systemctl reload bentpipe.service")[0] != 0
    assert story.shown_serial() == before
    host.put("/etc/bentpipe/tls.key", key, 0o600)
    host.run("systemctl reload bentpipe.service")
    assert story.shown_serial() != before


def test_a_typo_never_closes_the_port(story: Story) -> None:
    """However often the service is restarted with a mistake in its file, it runs with the last good configuration."""
    host = story.host
    host.run(f"cp {FILE} /root/good; echo '[[' >>{FILE}")
    try:
        for _ in range(RESTARTS):
            host.run("systemctl restart bentpipe.service", deadline_s=DEADLINE_S)
        assert story.show("ActiveState") == story.show("ActiveState", "bentpipe.socket") == "active"
        assert f"because of mistakes in {FILE}: " in story.show("StatusText")
        assert FILE in host.run("journalctl --no-pager --priority=warning --unit=bentpipe.service")
        assert ended(story.build(0)) == "awake"
    finally:
        host.run(f"cp /root/good {FILE}")
    host.run("systemctl reload bentpipe.service")
    assert "mistakes" not in story.show("StatusText")


def test_a_client_waits_while_no_configuration_can_be_used(story: Story) -> None:
    """Neither the file nor a last good one: systemd tries again each second, and no limit of starts stops it."""
    host = story.host
    host.run(
        f"cp {FILE} /root/good; systemctl stop bentpipe.socket bentpipe.service; rm /var/lib/bentpipe/last-good.json; "
        f"echo '[[' >>{FILE}; systemctl start bentpipe.socket; systemctl start --no-block bentpipe.service",
        deadline_s=DEADLINE_S,
    )
    try:
        waiting = story.build(0)
        tried = "while [ $(systemctl show -P NRestarts bentpipe.service) -lt $1 ]; do sleep 0.5; done"
        host.run(tried, str(RESTARTS), deadline_s=DEADLINE_S)
        assert story.show("ActiveState", "bentpipe.socket") == "active"
        assert waiting.poll() is None
    finally:
        host.run(f"cp /root/good {FILE}")
    assert ended(waiting) == "awake"


@pytest.mark.parametrize("signal", ["KILL", "SEGV"])
def test_systemd_starts_it_again_after_a_crash(story: Story, signal: str) -> None:
    """The satellite outlives it, and clients that come meanwhile are served."""
    host, before = story.host, story.show("MainPID")
    satellite = host.run("pgrep --full [t]estbed.satellite")
    host.run("systemctl kill --signal=$1 --kill-whom=main bentpipe.service", signal)
    assert ended(story.build(0)) == "awake"
    assert story.show("MainPID") != before
    assert host.run("pgrep --full [t]estbed.satellite") == satellite


def test_the_watchdog_ends_a_daemon_that_is_stuck(story: Story) -> None:
    host, before = story.host, story.show("MainPID")
    host.run("systemctl kill --signal=STOP --kill-whom=main bentpipe.service")
    story.wait_other_process(before)
    assert ended(story.build(0)) == "awake"
    assert "watchdog" in host.run("journalctl --no-pager --unit=bentpipe.service").lower()


def test_what_acm_exports_is_installed(story: Story) -> None:
    """The key is encrypted, and the chain is in a second file. From now on the configuration has one file for both."""
    before = story.show("MainPID")
    running = begun(story.build(BUILD_S))
    use_one_file(story, "bentpipe.service")
    install_as_acm_exports(story)
    first = story.shown_serial()
    install_as_acm_exports(story)
    assert story.shown_serial() not in {first, ""}
    assert ended(running) == "awake"
    assert story.show("MainPID") == before


def test_a_renewal_while_the_daemon_is_away(story: Story) -> None:
    """certbot calls its hook once, also for a daemon that is stopped or just being started again."""
    before = story.shown_serial()
    run_hook(story, "systemctl kill --signal=KILL --kill-whom=main bentpipe.service")
    second = story.shown_serial()
    assert second not in {before, ""}
    run_hook(story, "systemctl stop bentpipe.socket bentpipe.service")
    story.start()
    assert story.shown_serial() not in {second, ""}


def test_certbot_renews(story: Story) -> None:
    """A real certbot, a real ACME server, the hook of the package: the steps of docs/certificates.md."""
    try:
        program = pebble()
    except Missing as exc:
        pytest.skip(str(exc))
    host, before = story.host, story.show("MainPID")
    renew_by_certbot(story, program, "bentpipe.service", BUILD_S)
    assert story.show("MainPID") == before
    assert host.run("stat -c '%a %U' /etc/bentpipe/tls.pem").strip() == "600 root"
