"""Makes the greetings of new clients: read in C, or in Python alone."""

import logging
from typing import Literal

from bentpipe.daemon.connections.native_greeting import NativeGreeting, make_limits
from bentpipe.native.greeting import GreetingLimits, GreetingReader, nghttp2_version
from bentpipe.proto.greeting import Greeting

log = logging.getLogger("bentpipe.edge")

Wanted = Literal["auto", "python"]

NO_NGHTTP2 = "the engine was built without nghttp2"


class Greeters:
    """Follows `[daemon] greeting`: each new client gets a greeting of the kind that holds then."""

    def __init__(self, wanted: Wanted) -> None:
        self._limits = make_limits() if nghttp2_version() is not None else None
        self.follow(wanted)

    def follow(self, wanted: Wanted) -> None:
        """Change what new clients get."""
        self._in_c = wanted == "auto" and self._limits is not None
        if wanted == "auto" and not self._in_c:
            log.warning("greetings are read in Python alone", extra={"fields": {"reason": NO_NGHTTP2}})

    @property
    def limits(self) -> GreetingLimits | None:
        """Those of greetings that are read in C; None if the engine was built without nghttp2."""
        return self._limits

    @property
    def in_c(self) -> bool:
        """Whether new clients get a greeting in C."""
        return self._in_c

    def make(self) -> Greeting | NativeGreeting:
        """Make a greeting."""
        if self._limits is None or not self._in_c:
            return Greeting()
        return NativeGreeting(GreetingReader(self._limits))
