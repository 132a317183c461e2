"""Makes tokens. A token is shown once, to its maker. The configuration and the store must never hold more than its hash."""

import hashlib
import secrets

TOKEN_BYTES = 32
"""256 random bits cannot be guessed, so a plain hash protects them at rest."""

TOKEN_PREFIX = "bp_"
"""Makes a leaked token recognisable."""


def new_token() -> str:
    """Return a fresh random token: `bp_` and 64 hex digits."""
    return TOKEN_PREFIX + secrets.token_hex(TOKEN_BYTES)


def hash_token(token: str) -> str:
    """Return the hash that the configuration stores: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()
