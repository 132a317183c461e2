"""`bentpipe login --ci` in a job: against servers that answer as GitHub's and ours do."""

import base64
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from beds.programs import BENTPIPE
from bentpipe.daemon.accounts.contract import EXCHANGE_PATH

OF_A_CI = ("GITHUB_", "ACTIONS_", "GITLAB_", "CI")


def oidc(number: int, audience: str = "bentpipe") -> str:
    claims = json.dumps({"aud": audience, "jti": str(number)}).encode()
    return f"eyJ.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.signature"


class Edge:
    """Plays the CI's token service and an edge host; every OIDC token is another, and is exchanged once."""

    def __init__(self, directory: Path) -> None:
        ca = trustme.CA()
        self.ca = directory / "ca.pem"
        ca.cert_pem.write_to_path(str(self.ca))
        self.statuses: list[int] = []
        self.audiences: list[str] = []
        self.exchanged: list[str] = []
        self.answer = json.dumps({"token": "eyJ.job.token", "expiry": "2030-01-01T00:00:00Z"})
        edge = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self) -> None:
                edge.audiences += parse_qs(urlsplit(self.path).query).get("audience", [])
                assert self.headers["Authorization"] == "bearer request-token"
                self.answer(200, json.dumps({"value": oidc(len(edge.audiences), edge.audiences[-1])}))

            def do_POST(self) -> None:
                if self.path != EXCHANGE_PATH:
                    self.answer(404, "{}")
                    return
                edge.exchanged.append(self.headers["Authorization"])
                status = edge.statuses.pop(0) if edge.statuses else 200
                self.answer(
                    status, edge.answer if status == 200 else json.dumps({"message": "no rule is for this job"})
                )

        self._plain = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._secure = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(context)
        self._secure.socket = context.wrap_socket(self._secure.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._secure.server_port}"
        self.github = {
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "request-token",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://127.0.0.1:{self._plain.server_port}/token?api-version=2.0",
        }
        self._threads = [threading.Thread(target=each.serve_forever) for each in (self._plain, self._secure)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for server in (self._plain, self._secure):
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    made = Edge(tmp_path)
    yield made
    made.close()


def login(edge: Edge, ci: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    usual = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GITHUB_", "ACTIONS_", "GITLAB_", "CI"))
    }
    environment = {**usual, "EARTHLY_SERVER_ADDRESS": edge.url, **ci}
    command = [BENTPIPE, "login", "--ci", "--ca", edge.ca, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_in_github_the_token_is_printed(edge: Edge) -> None:
    done = login(edge, edge.github)
    assert (done.returncode, done.stdout, done.stderr) == (0, "eyJ.job.token\n", "")
    assert (edge.audiences, edge.exchanged) == (["bentpipe"], [f"Bearer {oidc(1)}"])


def test_or_added_to_the_jobs_variables_and_hidden_in_its_log(edge: Edge, tmp_path: Path) -> None:
    variables = tmp_path / "env"
    variables.write_text("OTHER=1\n")
    done = login(edge, edge.github, "--env-file", variables, "--audience", "https://edge.example")
    assert (done.returncode, done.stdout) == (0, "::add-mask::eyJ.job.token\n")
    assert variables.read_text() == "OTHER=1\nEARTHLY_TOKEN=eyJ.job.token\n"
    assert edge.audiences == ["https://edge.example"]


def test_in_gitlab_the_token_of_the_job_is_taken(edge: Edge) -> None:
    done = login(edge, {"GITLAB_CI": "true", "BENTPIPE_ID_TOKEN": oidc(7)})
    assert (done.returncode, done.stdout) == (0, "eyJ.job.token\n")
    assert edge.exchanged == [f"Bearer {oidc(7)}"]


def test_an_edge_that_cannot_say_yet_is_asked_again_with_another_token(edge: Edge) -> None:
    edge.statuses = [503, 503]
    assert login(edge, edge.github).stdout == "eyJ.job.token\n"
    assert edge.exchanged == [f"Bearer {oidc(number)}" for number in (1, 2, 3)]


def test_a_refusal_is_told_in_the_edges_words_and_not_repeated(edge: Edge) -> None:
    edge.statuses = [401]
    done = login(edge, edge.github)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no rule is for this job" in done.stderr
    assert len(edge.exchanged) == 1


def test_what_is_not_an_edge_host_is_told(edge: Edge) -> None:
    edge.answer = "<html>"
    done = login(edge, edge.github)
    assert done.returncode == 2
    assert "is this a bentpipe daemon?" in done.stderr


@pytest.mark.parametrize(
    ("ci", "words"),
    [
        ({}, "no CI found"),
        ({"GITHUB_ACTIONS": "true"}, "permissions"),
        ({"GITLAB_CI": "true"}, "BENTPIPE_ID_TOKEN"),
    ],
)
def test_a_job_without_a_token_is_told_what_is_missing(edge: Edge, ci: dict[str, str], words: str) -> None:
    done = login(edge, ci)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
