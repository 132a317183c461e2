"""boto3's client, and a new one if its credentials do not work. boto3 looks for credentials once, when a client is made.

Credentials may come late (the instance metadata are slow after a boot), be replaced by others, or expire. So if a call has
failed because of them, the client is replaced before the next call, but not more often than once in NEW_CLIENT_S.
"""

from typing import TYPE_CHECKING

import boto3
import trio
from botocore.config import Config

from bentpipe.config.model import Ec2Section
from bentpipe.daemon.providers.ec2.errors import PermitOver
from bentpipe.daemon.providers.permit import current_permit

if TYPE_CHECKING:  # types-boto3 is only for the type checker
    from types_boto3_ec2 import EC2Client

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
"""An answer takes 0.1 to 1 s. boto3's default of 60 s would delay a poll, and everything that waits for it."""
MAKE_DEADLINE_S = 30.0
"""For making a client. boto3 waits without end for a credential_process or a disk; then its thread is left behind."""
SLOW_CREDENTIALS = "a credential_process, or the disk with the configuration, does not answer"
NEW_CLIENT_S = 5.0
"""Least time between two clients: making one takes a tenth of a second of a core, and asks the instance metadata."""


class ClientSource:
    """Keeps the client for the next call."""

    def __init__(self, section: Ec2Section, connections: int) -> None:
        self._section = section
        self._connections = connections
        self._client: EC2Client | None = None
        self._failure: Exception | None = None
        self._made_at = float("-inf")
        self._doubted = False
        self._making = trio.Lock()

    async def client(self, threads: trio.CapacityLimiter) -> "EC2Client":
        """Return the client. If necessary, make it in a thread:

        boto3 reads a megabyte of EC2's model. Raises boto3's errors.
        """
        async with self._making:
            due = trio.current_time() >= self._made_at + NEW_CLIENT_S
            if due and (self._client is None or self._doubted):
                self._failure = None
                try:
                    # The calls that still use a replaced client keep it.
                    with trio.fail_after(MAKE_DEADLINE_S):
                        self._client = await trio.to_thread.run_sync(
                            self._make, limiter=threads, abandon_on_cancel=True
                        )
                except trio.Cancelled:
                    self._failure = TimeoutError("the client could not be made in time")
                    raise
                except trio.TooSlowError as exc:
                    self._client = None
                    self._failure = TimeoutError(f"no EC2 client after {MAKE_DEADLINE_S:g} s: {SLOW_CREDENTIALS}")
                    raise self._failure from exc
                except Exception as exc:
                    self._client, self._failure = None, exc
                    raise
                finally:
                    self._made_at = trio.current_time()
                    self._doubted = False
            if self._client is None:
                raise self._failure or AssertionError("neither a client nor the reason why there is none")
            return self._client

    @property
    def region(self) -> str:
        """The region that is called, as the configuration or boto3 has found it; "" while that is not known."""
        return self._section.region or ("" if self._client is None else self._client.meta.region_name)

    def doubt(self) -> None:
        """A call has failed, and might work with another client's credentials."""
        self._doubted = True

    def trust(self) -> None:
        """A call has worked."""
        self._doubted = False

    def _make(self) -> "EC2Client":
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=self._connections,
            user_agent_extra="bentpipe",
        )
        session = boto3.Session()
        client = session.client(
            "ec2", region_name=self._section.region, endpoint_url=self._section.endpoint, config=config
        )
        # This is the last step before a request is sent: its signature may have waited for credentials.
        client.meta.events.register("before-send.ec2", _check_permit)
        return client

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()


def _check_permit(**_: object) -> None:
    """Raises PermitOver."""
    if not current_permit()():
        raise PermitOver
