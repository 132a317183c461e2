"""One GET over HTTPS, in a thread, with bounds: of time, of size, and of where it goes (no redirects, no proxy).

urllib3 is blocking; it is what boto3 uses, so it is here already. A thread whose server sends a byte now and then ends at
its own deadline, a little after its caller's.
"""

import ssl
import time
from pathlib import Path

import trio
import urllib3

CONNECT_S, READ_S = 5.0, 5.0
DEADLINE_S = 6.0
"""For all of one answer."""
ANSWER_BYTES = 256 << 10
"""A key set of KEYS_MOST keys has some 100 KiB."""
CHUNK_BYTES = 16 << 10
OK = 200


class FetchError(Exception):
    """There is no good answer; `str()` says which address, and why."""


async def fetch(url: str, ca: Path | None) -> bytes:
    """Get a document; `ca` is who signs the server's certificate, by default the system's authorities. Raises FetchError."""
    with trio.move_on_after(DEADLINE_S):
        return await trio.to_thread.run_sync(_get, url, ca, abandon_on_cancel=True)
    raise FetchError(f"{url}: no complete answer within {DEADLINE_S:g} s")


def _get(url: str, ca: Path | None) -> bytes:
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        with (
            urllib3.PoolManager(ssl_context=context, timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S)) as pool,
            pool.request(
                "GET",
                url,
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                redirect=False,
                retries=False,
                preload_content=False,
            ) as answer,
        ):
            if answer.status != OK:
                raise FetchError(f"{url}: status {answer.status}")
            return _body(answer, url)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
        raise FetchError(f"{url}: {exc}") from exc


def _body(answer: urllib3.BaseHTTPResponse, url: str) -> bytes:
    body = b""
    until = time.monotonic() + DEADLINE_S
    while chunk := answer.read1(CHUNK_BYTES, decode_content=False):
        body += chunk
        if len(body) > ANSWER_BYTES:
            raise FetchError(f"{url}: over {ANSWER_BYTES} bytes")
        if time.monotonic() > until:
            raise FetchError(f"{url}: no complete answer within {DEADLINE_S:g} s")
    return body
