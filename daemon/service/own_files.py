"""Reads what the daemon would otherwise read from its own installation later, when an upgrade may have replaced it.

The daemon's own modules are all imported by then, since none of them is imported within a function of the daemon's.
"""

import importlib

from bentpipe.daemon.image.render import own_programs

LATE_IMPORTS = ("encodings.idna", "stringprep", "cryptography.hazmat.backends.openssl.backend")
"""What Python imports at the first name that it looks up, and cryptography at its first key."""


def read_own_files() -> None:
    """Read them, once."""
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    own_programs()
