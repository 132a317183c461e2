"""The id of a connection at the end of what a client is told."""

import re

_ID = re.compile(r" \(connection ([0-9a-z]{6}-[0-9a-z]{4}-[0-9a-z]{5})\)")
_QUOTED = re.compile(_ID.pattern + "$")
QUOTED = re.compile(rb"connection ([0-9a-z]{6}-[0-9a-z]{4}-[0-9a-z]{5})")
"""An id in the bytes of an answer."""


def split_id(words: str) -> tuple[str, str]:
    """(what the daemon says, the connection's id); the id is "" if the words are a satellite's own."""
    found = _QUOTED.search(words)
    return (words, "") if found is None else (words[: found.start()], found[1])


def without_id(words: str | None) -> str:
    """What the daemon says."""
    return split_id(words or "")[0]


def without_ids(text: str) -> str:
    """A program's output, without the ids of the connections that it made."""
    return _ID.sub("", text)
