"""HTTP/2 as tests write it and read it."""

from collections.abc import Iterable
from typing import cast

from bentpipe.proto.frames import FrameType, frame

EMPTY_SETTINGS = frame(FrameType.SETTINGS, 0, 0)


def texts(headers: Iterable[object]) -> dict[str, str]:
    """Fields by name, of hpack or of a connection of h2 that decodes. Both are typed as if their words were bytes."""
    return dict(cast("Iterable[tuple[str, str]]", headers))
