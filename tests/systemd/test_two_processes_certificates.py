"""Renewed certificates on a host with two processes: they reach the data plane, which alone has the key, without a restart.

The tests of a suite are one story on one host, in their order.
"""

import secrets
import subprocess
from collections.abc import Iterator

import pytest

from beds.booted.acme import pebble
from beds.booted.machine import BootedError
from beds.booted.renewals import ONE_FILE, install_as_acm_exports, renew_by_certbot, run_hook, use_one_file
from beds.booted.story import DEADLINE_S, FILE, Story, begun, ended
from beds.booted.two_processes import PLANE_A, PLANE_B
from beds.peers.builds import Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

BUILD_S = 10.0
PLANE_UNIT = "bentpipe-dataplane@.service"
LOOKS = 40
"""Handshakes while two files are swapped all the time."""
SWAPS = """
while :; do for which in one two; do
    cp /root/$which.pem /etc/bentpipe/tls.pem; sleep 0.0$(shuf -n 1 -i 1-9)
    cp /root/$which.key /etc/bentpipe/tls.key; sleep 0.0$(shuf -n 1 -i 1-9)
done; done
"""
METRICS = 9273
END = "bentpipe_certificate_end_seconds{"


@pytest.fixture
def same_processes(over: Story) -> Iterator[Story]:
    """Neither process is replaced, and a build goes on, whatever the test does."""
    units = ("bentpipe.service", PLANE_A)
    before = [over.show("MainPID", unit) for unit in units]
    running = begun(over.build(BUILD_S))
    yield over
    assert ended(running) == "awake"
    assert [over.show("MainPID", unit) for unit in units] == before


def certificate_ends(over: Story) -> str:
    """The lines of the metrics that tell them."""
    script = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:%d/metrics').read().decode())"
    said = over.host.run('python3 -c "$1"', script % METRICS)
    return "".join(line for line in said.splitlines(keepends=True) if line.startswith(END))


def test_no_certificate_is_shown_without_its_key(same_processes: Story) -> None:
    """Two files are replaced one after the other, and a reload comes between. It brings the key to the data plane."""
    over, host = same_processes, same_processes.host
    before = over.shown_serial()
    chain, key = over.issue()
    host.put("/etc/bentpipe/tls.pem", chain)
    assert host.attempt("systemctl reload bentpipe.service")[0] != 0
    code, said = host.attempt("bentpipe reload")
    assert (code, "data plane, process" in said) == (2, True), said
    assert over.shown_serial() == before
    host.put("/etc/bentpipe/tls.key", key, 0o600)
    host.run("systemctl reload bentpipe.service")
    assert over.shown_serial() not in {before, ""}


def test_no_client_meets_half_of_a_swap(same_processes: Story) -> None:
    """Key and certificate are swapped all the time, one after the other, and the daemon reloads at any moment in between."""
    over, host = same_processes, same_processes.host
    for name in ("one", "two"):
        chain, key = over.issue()
        host.put(f"/root/{name}.pem", chain)
        host.put(f"/root/{name}.key", key, 0o600)
    reloads = "while :; do systemctl reload bentpipe.service || true; done"
    loops = [subprocess.Popen([*host.command, "sh", "-c", loop]) for loop in (SWAPS, reloads)]
    try:
        seen = {over.shown_serial() for _ in range(LOOKS)}
    finally:
        for each in loops:
            each.kill()
            each.wait()
        host.attempt("pkill --full [w]hich.in.one.two; pkill --full [s]ystemctl.reload.bentpipe")
    assert "" not in seen
    assert len(seen) > 1
    host.run("cp /root/one.pem /etc/bentpipe/tls.pem; cp /root/one.key /etc/bentpipe/tls.key")
    host.run("systemctl reload bentpipe.service")


def test_the_control_plane_never_has_the_key(same_processes: Story) -> None:
    """It cannot read it, and does not complain of that; SIGHUP reloads nevertheless."""
    host = same_processes.host
    assert host.attempt("setpriv --reuid=bentpipe --clear-groups cat /etc/bentpipe/tls.key")[0] != 0
    count = "journalctl --no-pager --unit=bentpipe.service | grep --count 'reloaded changes='"
    before = host.run(f"{count} || true").strip()
    host.run("systemctl kill --signal=HUP --kill-whom=main bentpipe.service")
    host.run(f"while [ $({count}) -le $1 ]; do sleep 0.2; done", before, deadline_s=DEADLINE_S)
    assert "certificate where=" not in host.run("journalctl --no-pager --unit=bentpipe.service")


def test_what_acm_exports_is_installed(same_processes: Story) -> None:
    """From now on the configuration has one file for key and certificate, and no data plane is started for that."""
    use_one_file(same_processes, PLANE_UNIT)
    install_as_acm_exports(same_processes)
    first = same_processes.shown_serial()
    install_as_acm_exports(same_processes)
    assert same_processes.shown_serial() not in {first, ""}


def test_a_renewal_while_the_control_plane_is_away(over: Story) -> None:
    """certbot calls its hook once: that waits for a control plane that comes back, and fails if one is stopped."""
    before = over.shown_serial()
    running = begun(over.build(BUILD_S))
    run_hook(over, "systemctl kill --signal=KILL --kill-whom=main bentpipe.service")
    assert over.shown_serial() not in {before, ""}
    over.host.run("systemctl stop bentpipe.service", deadline_s=DEADLINE_S)
    with pytest.raises(BootedError, match=r"bentpipe\.service"):
        run_hook(over)
    over.host.run("systemctl start bentpipe.service; systemctl reload bentpipe.service", deadline_s=DEADLINE_S)
    assert ended(running) == "awake"


def test_another_file_is_refused_and_changes_nothing(same_processes: Story) -> None:
    """By `install-certificate` before anything is replaced, by the reload if somebody has written the file otherwise."""
    over, host = same_processes, same_processes.host
    before, good = over.shown_serial(), host.run("cat $1", ONE_FILE)
    other = "bentpipe install-certificate --certificate /root/cert.pem --key /root/one.key --to $1 2>&1"
    code, said = host.attempt(other, ONE_FILE)
    assert (code != 0, "nothing was installed" in said) == (True, True), said
    assert host.run("cat $1", ONE_FILE) == good
    host.put(ONE_FILE, secrets.token_bytes(100), 0o600)
    assert host.attempt("systemctl reload bentpipe.service")[0] != 0
    assert over.shown_serial() == before
    host.put(ONE_FILE, good.encode(), 0o600)
    host.run("systemctl reload bentpipe.service")


def test_the_next_data_plane_and_the_next_control_plane_go_on_with_it(over: Story) -> None:
    """systemd gives the next one the file as it is now, and the metrics tell its end by the operator's name."""
    host = over.host
    host.run(f"printf '[metrics]\\naddress = \"127.0.0.1:{METRICS}\"\\n' >>{FILE}")
    before = over.shown_serial()
    running = begun(over.build(BUILD_S))
    host.run("systemctl restart bentpipe.service", deadline_s=DEADLINE_S)
    host.run(f"systemctl start {PLANE_B}", deadline_s=DEADLINE_S)
    assert over.shown_serial() == before
    assert ended(running) == "awake"
    install_as_acm_exports(over)
    assert over.shown_serial() not in {before, ""}
    told = certificate_ends(over)
    assert 'file="credential:tls.pem"' in told
    assert len(told.splitlines()) == 1, told


def test_a_credential_in_the_wrong_unit_is_told_before_it_matters(over: Story) -> None:
    """The drop-in of one process, which docs/two-processes.md says to move."""
    host = over.host
    old, new = (f"/etc/systemd/system/{unit}.d" for unit in (PLANE_UNIT, "bentpipe.service"))
    host.run("mkdir -p $2; mv $1/certificate.conf $2/", old, new)
    try:
        _, said = host.attempt("bentpipe check 2>&1")
        assert PLANE_UNIT in said, said
    finally:
        host.run("mv $2/certificate.conf $1/; rmdir $2", old, new)
    assert PLANE_UNIT not in host.run("bentpipe check 2>&1")


def test_certbot_renews(over: Story) -> None:
    """The last one: clients of the story do not trust its authority."""
    try:
        program = pebble()
    except Missing as exc:
        pytest.skip(str(exc))
    renew_by_certbot(over, program, PLANE_UNIT, BUILD_S / 2)
    assert over.host.run("stat -c '%a %U' $1", ONE_FILE).strip() == "600 root"
    assert "listener" not in over.host.run("bentpipe check 2>&1 | grep warning:")
