"""The log's entries in a real journal: journalctl(1) finds them by their fields and by their priority."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.booted.machine import Booted
from beds.booted.root import SUITES, booted_root
from beds.peers.builds import Missing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDER = "/opt/journal"
MODULES = (
    "daemon/logs.py",
    "daemon/log_rates.py",
    "daemon/service/journal.py",
    "daemon/service/log_formatters.py",
    "daemon/service/log_handler.py",
    "daemon/service/log_queue.py",
)
PROGRAM = """
import logging
import sys

from bentpipe.daemon.service.log_handler import daemon_log

log = logging.getLogger("bentpipe.edge")
fields = {"id": "1s6xaq-8x0a-szxkc", "satellite": "acme/one", "principal": "ci", "error": "a\\nPRIORITY=0"}
with daemon_log(sys.argv[1], "info"):
    log.info("connection ended", extra={"fields": fields})
    log.error("it failed", extra={"fields": {"id": "other"}})
    try:
        raise ValueError("large " + "x" * 300_000)
    except ValueError:
        log.critical("it crashed", exc_info=True)
"""
SANDBOX = (
    "-p DynamicUser=yes -p ProtectSystem=strict -p SystemCallFilter=@system-service -p RestrictAddressFamilies=AF_UNIX"
)


@pytest.fixture(scope="module", params=SUITES)
def host(request: pytest.FixtureRequest) -> Iterator[Booted]:
    try:
        root = booted_root(str(request.param))
    except Missing as exc:
        pytest.skip(str(exc))
    with Booted(root) as booted:
        if booted.attempt("command -v python3")[0] != 0:
            pytest.skip("no Python in this root")
        for module in MODULES:
            booted.put(f"{FOLDER}/bentpipe/{module}", (ROOT / module).read_bytes(), 0o644)
        booted.put(f"{FOLDER}/program.py", PROGRAM.encode(), 0o644)
        yield booted


def entries(host: Booted, *matches: str) -> list[dict[str, str]]:
    host.run("journalctl --sync")
    said = host.run(f"journalctl --output=json --all --quiet {' '.join(matches)} || true")
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_journalctl_finds_lines_by_field_and_priority(host: Booted, log_format: str) -> None:
    unit = f"logging-{log_format}"
    host.run(
        f"systemd-run --quiet --wait --unit={unit} {SANDBOX} -p Environment=PYTHONPATH={FOLDER}"
        f" python3 {FOLDER}/program.py {log_format}"
    )
    (found,) = entries(host, f"_SYSTEMD_UNIT={unit}.service", "BENTPIPE_ID=1s6xaq-8x0a-szxkc")
    assert found["PRIORITY"] == "6"
    assert (found["BENTPIPE_SATELLITE"], found["BENTPIPE_PRINCIPAL"]) == ("acme/one", "ci")
    assert found["BENTPIPE_ERROR"] == "a\nPRIORITY=0"
    assert ("connection ended id=" if log_format == "text" else '"message": "connection ended"') in found["MESSAGE"]
    errors = entries(host, "-u", unit, "-p", "err")
    assert [each["PRIORITY"] for each in errors] == ["3", "2"]
    assert "it failed" in errors[0]["MESSAGE"]
    assert "it crashed" in errors[1]["MESSAGE"]
