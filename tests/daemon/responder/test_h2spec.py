"""h2spec against the responder, in plaintext and over TLS: nothing fails."""

import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from beds.peers.builds import Missing, h2spec
from beds.peers.responder_process import ResponderProcess

TIMEOUT_S = 3
"""h2spec's, for each thing it waits for."""
RUN_DEADLINE_S = 240.0
CASES = 146


@pytest.fixture(params=["plain", "tls"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    settings: dict[str, str | int] = {}
    if request.param == "tls":
        certificate = trustme.CA().issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        settings = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    try:
        program = h2spec()
    except Missing as exc:
        pytest.skip(str(exc))
    with ResponderProcess(settings) as responder:
        options = ["-t", "-k"] if request.param == "tls" else []
        yield [program, "-h", "127.0.0.1", "-p", str(responder.port), *options]


def test_h2spec(command: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command += ["-P", "/grpc.health.v1.Health/Check", "--strict", "-o", str(TIMEOUT_S), "-j", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_DEADLINE_S, check=False)
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert len(cases) == CASES, done.stdout[-2000:]
    problems = ("failure", "error", "skipped")
    failed = [case.get("classname") for case in cases if any(child.tag in problems for child in case)]
    assert failed == []
