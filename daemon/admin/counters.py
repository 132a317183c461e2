"""What the page counts of its visitors. It outlives the page's server, which a reload may end and begin again."""

import collections
import enum
from http import HTTPStatus


class Turned(enum.Enum):
    """Why a visitor did not get what it asked for. The values are those of the metric's label."""

    MALFORMED = "malformed"
    """The request cannot be read."""
    HOST = "host"
    """Under a name that the page does not have (DNS rebinding)."""
    ORIGIN = "origin"
    """A change that another site's page asked for."""
    SECRET = "secret"
    """A change whose form is too old, or not ours."""
    TOKEN = "token"
    """A sign-in with a token that is not valid."""
    ATTEMPTS = "attempts"
    """A sign-in among too many."""
    RIGHTS = "rights"
    """An action that its token does not allow."""
    LISTENERS = "listeners"
    """Too many open pages listen already."""
    CONNECTIONS = "connections"
    """The principal has too many connections already."""


class PageCounters:
    """Counts since the start of the daemon; `listeners` is now."""

    def __init__(self) -> None:
        self.answers: collections.Counter[HTTPStatus] = collections.Counter()
        self.turned: collections.Counter[Turned] = collections.Counter()
        self.listeners = 0
        """Open pages that are told of changes."""
