"""Which requests of a browser are let in, before anybody asks who made them. Pure.

A browser on the operator's machine also shows pages of strangers. Such a page must neither read this one, by a name of the
stranger's that leads to our address (DNS rebinding), nor act in the operator's name (CSRF), nor show this page in a frame
(clickjacking).
"""

import hmac
from collections.abc import Collection, Mapping

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
"""CSP level 3: nothing inline, nothing from elsewhere, no frame around the page."""
ANSWER_FIELDS = (
    ("content-security-policy", CONTENT_POLICY),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    # With "no-referrer" a form's Origin would be "null" (Fetch standard, "append a request Origin header").
    ("referrer-policy", "same-origin"),
)
"""Of every answer."""


def host_name(host: str) -> str:
    """The name in a field Host, without its port, in lower case (RFC 9110 §7.2)."""
    name, colon, port = host.rpartition(":")
    without = name if colon and port.isdigit() and not host.endswith("]") else host
    return without.lower()


def host_problem(fields: Mapping[str, str], hosts: Collection[str]) -> str:
    """Why the request's Host is not served; "" if it is."""
    name = host_name(fields.get("host", ""))
    if name in LOOPBACK_HOSTS or name in hosts:
        return ""
    return "this page is not served under that name: use localhost, or add the name to hosts in [admin]"


def origin_problem(fields: Mapping[str, str]) -> str:
    """Why a request that changes something does not come from a page of ours; "" if it does."""
    site, origin = fields.get("sec-fetch-site"), fields.get("origin")
    if site is None and origin is None:
        return "the request says neither its Origin nor its Sec-Fetch-Site, as browsers do"
    if site is not None and site != "same-origin":
        return f"the request comes from another page (Sec-Fetch-Site: {site})"
    if origin is not None:
        scheme, separator, rest = origin.partition("://")
        if not separator or scheme not in ("http", "https") or rest.lower() != fields.get("host", "").lower():
            return "the request comes from another page (Origin)"
    return ""


def is_same_secret(sent: str, known: str) -> bool:
    """Compare in constant time."""
    return bool(known) and hmac.compare_digest(sent.encode(), known.encode())
