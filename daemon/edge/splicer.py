"""What moves the bytes of splices, as the hand-off uses it."""

from typing import Protocol

from bentpipe.native.engine import Engine, SpliceId


class Splicer(Protocol):
    """What moves the bytes of splices: the engine of this process, or data planes. All methods raise KeyError for a splice
    whose end was taken."""

    def moved(self, splice_id: SpliceId) -> tuple[int, int]:
        """Bytes delivered up and down, as far as they are known here; never waits."""
        ...

    def abort(self, splice_id: SpliceId) -> None:
        """Reset both legs."""
        ...

    def end_quiet(self, splice_id: SpliceId, *, cut: bool) -> None:
        """End it in good order, or (`cut`) by RST, because it is quiet. A splicer that does not know at once whether it
        still is may refuse that later."""
        ...

    async def refresh(self) -> None:
        """Find out what the splices have moved."""
        ...


class EngineSplicer:
    """The engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def moved(self, splice_id: SpliceId) -> tuple[int, int]:
        """See Splicer."""
        counters = self._engine.counters(splice_id)
        return counters.client_to_satellite_bytes, counters.satellite_to_client_bytes

    def abort(self, splice_id: SpliceId) -> None:
        """See Splicer."""
        self._engine.abort(splice_id)

    def end_quiet(self, splice_id: SpliceId, *, cut: bool) -> None:
        """See Splicer. The engine cannot give TLS connections back: those are reset."""
        if not cut:
            try:
                self._engine.give_back(splice_id)
            except OSError:
                cut = True
        if cut:
            self._engine.abort(splice_id)

    async def refresh(self) -> None:
        """See Splicer: `moved` reads the engine's own counters."""
