"""`bentpipe login --ci`: gets the CI's own token for this job and exchanges it at an edge host for one of ours.

It runs in a CI job, far from any daemon. The package `id` (Sigstore's and PyPI's) knows how each CI gives out its tokens.
"""

import json
import os
import ssl
import time
from pathlib import Path

import click
import id as ambient
import urllib3

from bentpipe.daemon.accounts.contract import EXCHANGE_DEADLINE_S, EXCHANGE_PATH
from bentpipe.daemon.errors import BentpipeError, Source

TIMEOUT_S = EXCHANGE_DEADLINE_S + 10.0
ATTEMPTS = 3
"""Of the exchange, where nobody answers or the answer is that it may work later. Each asks the CI for a token of its own."""
PAUSE_S = 1.0
LATER = (429, 500, 502, 503, 504)
OK = 200
ANSWER_BYTES = 64 << 10
TOKEN_VARIABLE = "EARTHLY_TOKEN"


class CiLoginError(BentpipeError):
    """The job got no token: the words are for its log."""

    source = Source.OPERATOR


def run_ci_login(server: str, audience: str, ca: Path | None, env_file: Path | None) -> None:
    """Print a token of ours for this job, or add it to a file of variables. Raises CiLoginError."""
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    token = _exchanged(server.rstrip("/") + EXCHANGE_PATH, audience, context)
    if env_file is None:
        click.echo(token)
        return
    if os.environ.get("GITHUB_ACTIONS"):
        click.echo(f"::add-mask::{token}")  # the runner then hides it in the job's log
    with env_file.open("a") as file:
        file.write(f"{TOKEN_VARIABLE}={token}\n")


def _exchanged(url: str, audience: str, context: ssl.SSLContext) -> str:
    words = ""
    for _ in range(ATTEMPTS):
        try:
            status, words = _post(url, _id_token(audience), context)
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            words = str(exc)
        else:
            if status == OK:
                return _token_in(words, url)
            if status not in LATER:
                break
        time.sleep(PAUSE_S)
    raise CiLoginError(f"{url}: {words}")


def _id_token(audience: str) -> str:
    try:
        found = ambient.detect_credential(audience)
    except ambient.IdentityError as exc:
        raise CiLoginError(f"the CI gives this job no OIDC token: {exc}") from exc
    if found is None:
        raise CiLoginError("no CI found that gives out OIDC tokens (GitHub Actions, GitLab, Buildkite, CircleCI)")
    return str(found)


def _post(url: str, id_token: str, context: ssl.SSLContext) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {id_token}", "Accept": "application/json"}
    timeout = urllib3.Timeout(total=TIMEOUT_S)
    with (
        urllib3.PoolManager(ssl_context=context, timeout=timeout) as pool,
        pool.request(
            "POST", url, headers=headers, body=b"", redirect=False, retries=False, preload_content=False
        ) as answer,
    ):
        return answer.status, answer.read(ANSWER_BYTES).decode(errors="replace")


def _token_in(body: str, url: str) -> str:
    try:
        found: object = json.loads(body)
    except ValueError:
        found = None
    token = found.get("token") if isinstance(found, dict) else None
    if not isinstance(token, str) or not token:
        raise CiLoginError(f"{url}: the answer has no token; is this a bentpipe daemon?")
    return token
