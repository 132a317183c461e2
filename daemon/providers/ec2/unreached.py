"""Why a call has not reached EC2, from botocore's exceptions, and whether that may pass by itself. Pure.

No answer at all may pass at any moment: a timeout, a broken connection, a resolver that does not answer. Other causes are
definite. Somebody has answered that there is no such name, that nothing listens there, or with a certificate of something
else: mostly a misspelt region or endpoint, a proxy, or a route that is missing.
"""

import errno
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError

NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
"""getaddrinfo(3): there is no such name, or it has no address. EAI_AGAIN means that no name server has answered."""
NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})
DEPTH = 20
"""Exceptions behind an exception that are looked at."""
PLACES = ("endpoint_url", "proxy_url")
"""What botocore's exceptions tell of where a call went."""


def unreached_words(exc: BaseException) -> str:
    """Why EC2 certainly cannot be reached, for clients; "" if that may pass by itself, or is not known."""
    place = _place_of(exc)
    for cause in _causes(exc):
        match cause:
            case socket.gaierror(errno=code) if code in NO_SUCH_NAME:
                return f"there is no host {urlsplit(place).hostname or place}"
            case ssl.SSLCertVerificationError(verify_message=words):
                return f"{place} has another certificate than the cloud ({words})"
            case ConnectionRefusedError():
                return f"nothing listens at {place}"
            case OSError(errno=code) if code in NO_ROUTE:
                return f"there is no route to {place}"
    return ""


def _place_of(exc: BaseException) -> str:
    """Scheme, host and port: a proxy's address may have a password in it."""
    found = getattr(exc, "kwargs", {}) if isinstance(exc, BotoCoreError) else {}
    url = urlsplit(next((str(found[name]) for name in PLACES if name in found), ""))
    if not url.hostname:
        return "the cloud's address"
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}" + (f":{url.port}" if url.port else "")


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception, and all that it was made of."""
    waiting, seen = [exc], set[int]()
    while waiting and len(seen) < DEPTH:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        told = getattr(each, "kwargs", {})
        more = [each.__cause__, each.__context__, told.get("error") if isinstance(told, dict) else None]
        more += [getattr(each, "reason", None), *each.args]
        waiting += [found for found in more if isinstance(found, BaseException)]
