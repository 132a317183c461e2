"""Takes over a changed configuration while clients are connected: all of it, or nothing.

    read ─▶ check ─▶ compare ─▶ refuse, or apply ─▶ keep as the last good configuration

Everything that can fail comes before anything changes. A reload is asked for by the control socket (`bentpipe reload`, which
waits for the verdict) or by SIGHUP. The verdict is also in the log, in systemd's status and in the metrics.
"""

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import trio

from bentpipe.config.load import ConfigErrors
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.certificate_watch import CertificateWatch
from bentpipe.daemon.service.control import CREDENTIAL_NAMES, FILES, ControlError, Fields
from bentpipe.daemon.service.credential_names import name_credentials
from bentpipe.daemon.service.current import ConfigOrigin, Current
from bentpipe.daemon.service.reload_apply import LiveParts, apply
from bentpipe.daemon.service.reload_open import ReadyParts, open_for
from bentpipe.daemon.service.reload_plan import Prepared, RunningParts, Unfit, prepare, refusals
from bentpipe.native.engine import Ktls
from bentpipe.native.tls import TlsError

log = logging.getLogger("bentpipe")

READ_DEADLINE_S = 10.0
"""For all files. A disk that hangs ends the reload, not the daemon."""
NOTHING = "nothing has changed"


class ReloadFailed(Exception):
    """The configuration was not taken over. The message has one line for each reason."""


class _Credentials:
    """Credentials as they were when they came: systemd gives a service those of its start, and never newer ones."""

    def __init__(self, names: list[str], files: list[int]) -> None:
        """Keeps copies of the descriptors."""
        self._files = [os.dup(each) for each in files]
        self.paths: Mapping[str, Path] = {
            name: Path(f"/proc/self/fd/{file}") for name, file in zip(names, self._files, strict=True)
        }

    def close(self) -> None:
        """Forget them."""
        for each in self._files:
            os.close(each)
        self._files = []


class Reloader:
    """`run_reloads` must run."""

    def __init__(
        self,
        current: Current,
        running: RunningParts,
        live: LiveParts,
        ktls: Ktls,
        watch: CertificateWatch,
        *,
        reset: Callable[[], None],
        planes: Callable[[Mapping[str, Path]], Awaitable[Sequence[str]]] | None = None,
    ) -> None:
        """`reset` is called after each reload that worked: somebody has acted, and what had failed may be tried again.

        `planes` has data planes that are processes of their own read their files again, with newer credentials; it returns
        what they could not read.
        """
        self._planes = planes
        self._current = current
        self._running = running
        self._live = live
        self._ktls = ktls
        self._watch = watch
        self._reset = reset
        self._credentials = _Credentials([], [])
        self._one_at_a_time = trio.Lock()
        self._thread = trio.CapacityLimiter(1)  # a thread that hangs keeps its place: no further one is started
        self._asked = trio.Event()

    def named(self, text: str) -> str:
        """A text in which the operator's name of each credential stands for its file."""
        return name_credentials(text, self._credentials.paths)

    def ask(self) -> None:
        """Reload soon, as SIGHUP asks. The verdict is in the log."""
        sd.notify_reloading()
        self._asked.set()

    async def run_reloads(self) -> None:
        """Reload whenever a signal asks for it, for ever."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            try:
                with contextlib.suppress(ReloadFailed):  # it was told
                    await self.reload()
            finally:
                if not self._asked.is_set():
                    sd.notify("READY=1")

    async def verb(self, fields: Fields) -> Fields:
        """The control socket's verb `reload`, with `dry_run`, and `credentials` whose files come with the request.

        Answers with `changes`, `warnings` and `pending`. Raises ControlError if nothing was taken over.
        """
        names, files = fields.get(CREDENTIAL_NAMES, []), fields.get(FILES, [])
        if not isinstance(names, list) or not isinstance(files, list) or len(names) != len(files):
            raise ControlError("reload: expected a name for each file")
        dry_run = bool(fields.get("dry_run", False))
        fresh = _Credentials([str(each) for each in names], files) if names else None
        try:
            prepared = await self.reload(fresh, dry_run=dry_run)
        except ReloadFailed as exc:
            raise ControlError(str(exc)) from exc
        return {
            "changes": [
                {"where": each.where, "words": each.words, "effect": each.effect_words} for each in prepared.differences
            ],
            "warnings": list(prepared.warnings),
            "pending": {str(key): words for key, words in self._live.changes.pending.items()} if not dry_run else {},
            "files": len(prepared.loaded.texts.more) + 1 if prepared.loaded is not None else 0,
        }

    async def reload(self, credentials: _Credentials | None = None, *, dry_run: bool = False) -> Prepared:
        """Take over the configuration as it is in the files now; with `dry_run` only say what that would change.

        `credentials` are newer than those of the last reload. Raises ReloadFailed, and then nothing has changed.
        """
        used = credentials or self._credentials
        async with self._one_at_a_time:
            try:
                prepared = await self._plan(used)
                opened = await self._open(prepared, dry_run=dry_run)
                async with opened.closed_unless_taken():
                    if not dry_run:
                        await self._reload_planes(credentials)
                        opened.taken = True
                        await self._take_over(prepared, opened, used)
                return prepared
            except ReloadFailed as exc:
                if not dry_run:
                    self._tell_failed(str(exc))
                raise
            finally:
                if credentials is not None and credentials is not self._credentials:
                    credentials.close()

    async def _plan(self, credentials: _Credentials) -> Prepared:
        paths, serves_listeners = credentials.paths, self._running.serves_listeners
        try:
            with trio.fail_after(READ_DEADLINE_S):
                prepared = await trio.to_thread.run_sync(
                    lambda: prepare(self._current, paths, self._ktls, serves_listeners=serves_listeners),
                    limiter=self._thread,
                    abandon_on_cancel=True,
                )
        except trio.TooSlowError:
            words = f"the files were not read within {READ_DEADLINE_S:g} s: the disk hangs"
            raise ReloadFailed(f"{NOTHING}: {words}") from None
        except (ConfigErrors, Unfit, TlsError, OSError) as exc:
            raise ReloadFailed(f"{NOTHING}:\n{name_credentials(str(exc), paths)}") from exc
        refused = refusals(prepared, self._running)
        if refused:
            raise ReloadFailed("\n".join([f"{NOTHING}, since this cannot change in a running daemon:", *refused]))
        return prepared

    async def _reload_planes(self, newer: _Credentials | None) -> None:
        """Before anything changes here: a certificate that nobody can read is a mistake of the operator's."""
        if self._planes is None:
            return
        problems = await self._planes({} if newer is None else newer.paths)
        if problems:
            words = f"{NOTHING} but what else the data plane could read, since it could not read everything:"
            raise ReloadFailed("\n".join([words, *problems]))

    async def _open(self, prepared: Prepared, *, dry_run: bool) -> ReadyParts:
        try:
            return await open_for(prepared, self._live.openable, dry_run=dry_run)
        except Unfit as exc:
            raise ReloadFailed(f"{NOTHING}:\n{exc}") from exc

    async def _take_over(self, prepared: Prepared, opened: ReadyParts, credentials: _Credentials) -> None:
        apply(prepared, opened, self._live)
        current = self._current
        current.config = prepared.config
        current.reloads += 1
        current.last_failure = ""
        if current.origin is not None and prepared.loaded is not None:
            current.problem = ""
            current.origin = ConfigOrigin(current.origin.path, prepared.loaded, current.origin.keep)
            current.origin.keep(prepared.loaded.texts)
        if credentials is not self._credentials and self._planes is None:  # else they are the data planes' to keep
            self._credentials.close()
            self._credentials = credentials
        for each in prepared.differences:
            log.info("configuration changed", extra={"fields": {"where": each.where, "change": each.words}})
        for listener in self._live.listeners:
            log.info("certificate reloaded", extra={"fields": {"listener": listener[0]}})
        log.info("reloaded", extra={"fields": {"changes": len(prepared.differences)}})
        sd.notify(f"STATUS=reloaded: {len(prepared.differences)} changes")
        self._watch.ask()
        self._reset()
        if self._live.gatekeeper is not None:
            # The reload is done once no data plane admits anybody by what held before.
            for words in await self._live.gatekeeper.settle():
                log.error("a data plane may still admit clients as before", extra={"fields": {"error": words}})
        with trio.move_on_after(READ_DEADLINE_S):
            await self._live.changes.wait_added()

    def _tell_failed(self, words: str) -> None:
        self._current.failed += 1
        self._current.last_failure = words
        for line in _lines(words):
            log.error("not reloaded", extra={"fields": {"reason": line}})
        heading, *reasons = _lines(words)
        sd.notify(f"STATUS=the last reload failed, and {' '.join([heading, *reasons[:1]])}")


def _lines(words: str) -> Iterator[str]:
    return (line for line in words.splitlines() if line)
