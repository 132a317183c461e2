"""Keeps a key to sign sessions with, publishes its public half, and replaces it in time. One owned task.

The key comes from the file that the configuration names. Without one the keeper makes a key, keeps it in the state
directory and replaces it every ROTATE_S. Either way a new key signs only when every host of the fleet knows it: its public
half is published, and the keeper waits for `lead_s`, in which every host has read the store. The old public half stays
published until nothing that the key has signed is valid any more. So a rotation ends no session.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import trio

from bentpipe.config.accounts import MOST_SESSION_S
from bentpipe.daemon.accounts.sessions import Sessions
from bentpipe.daemon.accounts.signing_key import SigningKey, SigningKeyError, keep_key, new_key, read_key
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.registry.accounts import AccountStore, StoredKey

log = logging.getLogger("bentpipe.accounts")

KEY_NAME = "session-signing-key.pem"
ROTATE_S = 30 * 86_400.0
"""Age at which a key that the keeper made is replaced."""
LOOK_S = 60.0
"""Between looks at the file: a key that an operator has replaced is taken without a restart."""
RETRY_S = 5.0
"""After a look or a publication that failed."""
PUBLISH_S = 3_600.0
"""Between publications of the same key: each prolongs its row."""
KEPT_S = MOST_SESSION_S + 2 * PUBLISH_S
"""How long a public key is trusted after its last publication: what it signed just before the next one may live a day."""
LEAD_S = 5.0
"""Between the publication and the first use of a new key, where several hosts share the store: they read it every 2 s."""


class KeyKeeper:
    """Made without I/O."""

    def __init__(
        self,
        sessions: Sessions,
        store: AccountStore | None,
        *,
        configured: Path | None,
        kept: Path | None,
        lead_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._configured = configured
        self._kept = kept
        self._lead_s = lead_s
        self._now = now
        self._key: SigningKey | None = None
        self._in_memory: SigningKey | None = None
        self._published_at = float("-inf")
        self._failing = ""
        self._signing = trio.Event()

    async def wait_signing(self) -> None:
        """Wait until there is a key that signs."""
        await self._signing.wait()

    async def run_keeper(self) -> None:
        """Keep the key for ever."""
        while True:
            try:
                await self._look()
            except (SigningKeyError, StoreError) as exc:
                if str(exc) != self._failing:
                    log.error("the key that signs sessions", extra={"fields": {"error": str(exc)}})
                self._failing = str(exc)
                await trio.sleep(RETRY_S)
            else:
                self._failing = ""
                await trio.sleep(LOOK_S)

    async def _look(self) -> None:
        key = await trio.to_thread.run_sync(self._read)
        if self._key is None or key.key_id != self._key.key_id:
            await self._take(key)
        elif self._now() - self._published_at >= PUBLISH_S:
            await self._publish(key)

    async def _take(self, key: SigningKey) -> None:
        if self._store is None or not self._lead_s:
            self._sign_with(key)  # no other host has to know it: it need not wait for the store
            self._published_at = float("-inf")
            await self._publish(key)
            return
        now_us = self._now() * 1e6
        known = {row.key_id for row in (await self._store.accounts()).keys if row.until_us > now_us}
        await self._publish(key)
        if key.key_id not in known:
            await trio.sleep(self._lead_s)
        self._sign_with(key)

    def _sign_with(self, key: SigningKey) -> None:
        self._key = key
        self._sessions.sign_with(key)
        self._signing.set()
        log.info("sessions are signed with a key", extra={"fields": {"key": key.key_id}})

    async def _publish(self, key: SigningKey) -> None:
        if self._store is None:
            return
        now_us = int(self._now() * 1e6)
        await self._store.put_key(StoredKey(key.key_id, key.public_pem, now_us + int(KEPT_S * 1e6)))
        self._published_at = self._now()
        await self._store.forget_ended(now_us=now_us)

    def _read(self) -> SigningKey:
        """In a thread."""
        if self._configured is not None:
            return read_key(self._configured)
        if self._kept is None:
            if self._in_memory is None:
                self._in_memory = new_key()
                log.warning(
                    "there is no state directory: the key that signs sessions is kept in memory, and a restart ends "
                    "every session; [accounts] signing_key names a file"
                )
            return self._in_memory
        try:
            if self._now() - self._kept.stat().st_mtime < ROTATE_S:
                return read_key(self._kept)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise SigningKeyError(f"{self._kept}: {exc.strerror or exc}") from exc
        key = new_key()
        keep_key(self._kept, key)
        log.info("a key to sign sessions was made", extra={"fields": {"key": key.key_id, "file": str(self._kept)}})
        return key
