"""h2spec against connections that the daemon answers itself; h2spec_failures.toml explains what fails, no more, no less.

What h2spec sends before its first request meets the greeting, what it sends from then on meets the h2 library; its
requests are for the health service, which refuses them for their method (405).
"""

import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme

from beds.hosts.form import serve_file
from beds.hosts.in_process import PLAIN, write_config
from beds.peers.builds import Missing, h2spec
from beds.peers.h2spec_bridge import serve_bridge
from bentpipe.daemon.service.serve import Daemon

EXPLAINED = tomllib.loads((Path(__file__).parent / "h2spec_failures.toml").read_text())
TIMEOUT_S = 5
"""h2spec's, for each thing it waits for."""
RUN_DEADLINE_S = 240.0
CASES = 146


def outcomes(report: Path) -> dict[str, str | None]:
    """By "package: description", what h2spec says went wrong, None if nothing."""
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        words = None if problem is None else f"{problem.tag}: {' '.join((problem.text or '').split())}"
        found[f"{case.get('package')}: {case.get('classname')}"] = words
    return found


@pytest.fixture
async def patient(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> AsyncIterator[Daemon]:
    """A daemon that outwaits h2spec: to h2spec an end of the connection is as good as the error that it waits for."""
    path = write_config(tmp_path, authority, client_authority, limits=f'greeting_deadline = "{10 * TIMEOUT_S}s"')
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, path)
        yield running
        running.drain.set()


async def test_h2spec(patient: Daemon, tmp_path: Path) -> None:
    try:
        program = h2spec()
    except Missing as exc:
        pytest.skip(str(exc))
    report = tmp_path / "report.xml"
    with trio.fail_after(RUN_DEADLINE_S):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(serve_bridge, patient.addresses[PLAIN])
            command = [program, "-h", "127.0.0.1", "-p", str(port), "-P", "/grpc.health.v1.Health/Check"]
            command += ["--strict", "-o", str(TIMEOUT_S), "-j", str(report)]
            done = await trio.run_process(command, capture_stdout=True, check=False)
            nursery.cancel_scope.cancel()
    found = outcomes(report)
    assert len(found) == CASES, done.stdout.decode()[-2000:]
    failed = {name: words for name, words in found.items() if words is not None}
    assert failed.keys() - EXPLAINED.keys() == set(), failed
    assert EXPLAINED.keys() - failed.keys() == set(), "explained as failing, but passes"
