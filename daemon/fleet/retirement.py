"""Whether a satellite takes clients: none while it is removed, updated, or the daemon drains. And as what clients see it."""

from collections.abc import Callable

from bentpipe.daemon.errors import BentpipeError, Draining, SatelliteUnusable
from bentpipe.daemon.fleet.machine.words import DRAINING
from bentpipe.daemon.model import SatelliteKey, SatelliteState

RETIRED_WORDS = {
    SatelliteState.DESTROYING: "the satellite is being removed",
    SatelliteState.UPDATING: "the satellite is being updated; try again in a moment",
}
"""By the state in which clients see it."""


class Retirement:
    """`refuse` tells the satellite what clients get, None if it takes them. `report` tells the ledger a change: the states
    after and before it, and the cause."""

    def __init__(
        self,
        key: SatelliteKey,
        refuse: Callable[[BentpipeError | None], None],
        report: Callable[[SatelliteState, SatelliteState, str], None],
    ) -> None:
        self._key = key
        self._refuse = refuse
        self._report = report
        self._draining = False
        self._own: BentpipeError | None = None
        self._closed: BentpipeError | None = None
        self.state: SatelliteState | None = None
        """DESTROYING or UPDATING; None if it is neither."""
        self.refusal: BentpipeError | None = None
        """What clients get; None if it takes them."""

    def drain(self) -> None:
        """The daemon takes no more clients."""
        self._draining = True
        self._change_refusal(Draining(DRAINING))

    def begin(self, state: SatelliteState, shown: SatelliteState) -> None:
        """It is being removed or updated. `shown` is as what clients have seen it until now."""
        if self.state is state:
            return
        self._report(state, shown, _cause(state))
        self.state = state
        words = RETIRED_WORDS[state]
        self._change_refusal(SatelliteUnusable(f"{self._key}: {words}", peer_hint=words))

    def end(self, shown: SatelliteState) -> None:
        """Its update was given up. `shown` is as what clients see it from now on."""
        if self.state is None:
            return
        self._report(shown, self.state, "the update was given up")
        self.state = None
        self._change_refusal(None)
        if self._draining:
            self.drain()

    def dismiss(self, words: str) -> None:
        """It is to be given up once nobody uses it: clients that come get these words. The ledger goes on until then."""
        self._change_refusal(SatelliteUnusable(f"{self._key}: {words}", peer_hint=words))

    def recall(self) -> None:
        """It is to be kept after all."""
        self._change_refusal(None)
        if self._draining:
            self.drain()

    def close(self, words: str) -> None:
        """Its operator lets no more clients in: they get these words, unless there is another reason to refuse them."""
        self._closed = SatelliteUnusable(f"{self._key}: {words}", peer_hint=words)
        self._change_refusal(self._own)

    def reopen(self) -> None:
        """Its operator lets clients in again."""
        self._closed = None
        self._change_refusal(self._own)

    @property
    def is_closed(self) -> bool:
        """Whether its operator lets no clients in."""
        return self._closed is not None

    def finish(self, after: SatelliteState | None, shown: SatelliteState, cause: str) -> None:
        """It is given up: for `cause` it becomes `after`, and `shown` is as what clients have seen it.

        Without `after` a client has removed it, where no time after this counts; or another one takes its place.
        """
        if after is not None:
            self._report(after, shown, cause)
            return
        before = self.state or SatelliteState.DESTROYING
        updated = before is SatelliteState.UPDATING
        self._report(SatelliteState.UNKNOWN if updated else SatelliteState.OFFLINE, before, _cause(before))

    def _change_refusal(self, error: BentpipeError | None) -> None:
        self._own = error
        self.refusal = error or self._closed
        self._refuse(self.refusal)


def _cause(state: SatelliteState) -> str:
    return f"{'updated' if state is SatelliteState.UPDATING else 'removed'} by a client of the API"
