"""What can go wrong, whose fault it is, and what the client is told.

Owns: the error taxonomy of the daemon. Foreign exceptions (OSError, boto3, OpenSSL) are converted at the boundary
where they arise, with `raise ... from exc`; above it only these are seen. Called by every other module.
"""

import enum

from bentpipe.proto.grpc_status import GrpcStatus


class Source(enum.Enum):
    """Who caused an error."""

    CLIENT = "client"
    SATELLITE = "satellite"
    PROVIDER = "provider"
    OPERATOR = "operator"
    INTERNAL = "internal"


class BentpipeError(Exception):
    """Base of the daemon's own errors.

    `status` is the gRPC status the client gets, `peer_hint` the words it gets (never a secret, never another tenant's
    name); `str(error)` is for the operator's log.
    """

    source: Source = Source.INTERNAL
    status: GrpcStatus = GrpcStatus.INTERNAL
    retryable: bool = False

    def __init__(self, message: str, *, peer_hint: str | None = None) -> None:
        super().__init__(message)
        self.peer_hint = message if peer_hint is None else peer_hint


class Refused(BentpipeError):
    """The client may not have what it asked for; base of the admission errors."""

    source = Source.CLIENT


class Unauthenticated(Refused):
    """No token, or one that is not ours."""

    status = GrpcStatus.UNAUTHENTICATED


class TokensUnknown(BentpipeError):
    """A token that the configuration does not have, and the store, which may have it, has not answered yet."""

    source = Source.OPERATOR
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class NoSuchSatellite(Refused):
    """Unknown satellite or one of somebody else: one answer for both, so that names cannot be probed."""

    status = GrpcStatus.NOT_FOUND


class InvalidMetadata(Refused):
    """The request's metadata is missing a field, repeats one, or is malformed."""

    status = GrpcStatus.INVALID_ARGUMENT


class LimitReached(Refused):
    """A named limit of the configuration is used up."""

    status = GrpcStatus.RESOURCE_EXHAUSTED
    retryable = True


class TlsWanted(Refused):
    """It speaks HTTP/2 in the clear to a port that speaks TLS."""

    status = GrpcStatus.FAILED_PRECONDITION


class Cut(BentpipeError):
    """The operator cut the connections of its principal or satellite."""

    source = Source.OPERATOR
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class Draining(BentpipeError):
    """The daemon is shutting down and takes nobody in any more."""

    status = GrpcStatus.UNAVAILABLE
    retryable = True


class WakeFailed(BentpipeError):
    """The satellite could not be woken, or not before the deadline; carries the provider's reason."""

    source = Source.SATELLITE
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class SatelliteUnusable(BentpipeError):
    """The satellite is FAILED, OFFLINE or being destroyed: waking it is no use until somebody acts."""

    source = Source.SATELLITE
    status = GrpcStatus.FAILED_PRECONDITION


class DialFailed(BentpipeError):
    """The satellite is awake, but its address could not be reached before the deadline or no HTTP/2 server answers there."""

    source = Source.SATELLITE
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class MachineUncertain(BentpipeError):
    """The satellite is awake, but its address may be another machine's by now, and nobody can say."""

    source = Source.PROVIDER
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class ProviderError(BentpipeError):
    """Base of what a provider can raise; the subclass decides what the wake loop does about it."""

    source = Source.PROVIDER
    status = GrpcStatus.UNAVAILABLE


class ProviderRetryable(ProviderError):
    """A passing fault: the same call may work a moment later."""

    retryable = True


class ProviderThrottled(ProviderRetryable):
    """Too many calls: the same call may work later, and every call less helps."""


class ProviderCapacity(ProviderError):
    """The cloud has no such machine to give now: try again in minutes."""

    retryable = True


class MachineNotFound(ProviderError):
    """The provider knows no machine by that id."""


class ProviderPermanent(ProviderError):
    """Configuration, or what the machine is: people must act. They need not tell us: it is tried again now and then."""


class ProviderRefused(ProviderError):
    """The call was refused for a reason that nobody has foreseen: it may pass by itself, or people must act."""

    retryable = True


class ProviderPermission(ProviderPermanent):
    """We may not do that, or the provider may not on our behalf."""


class LaunchTokenSpent(ProviderPermanent):
    """The token has made a machine that is gone already: it takes another one to make another machine."""


class SleepModeRefused(ProviderError):
    """The machine cannot sleep in the asked-for way (for example hibernate); another way may work."""


class SleepTooEarly(ProviderRetryable):
    """The machine has not run long enough to be put to sleep (EC2: about two minutes); later it works."""


class SleepVetoed(ProviderRetryable):
    """Somebody uses the machine, here or on another host, or nobody can tell: it is as if it had been used just now."""


STORE_HINT = "the edge host's store, which this needs, cannot be used now"


class StoreError(BentpipeError):
    """The store could not be read or written. Books stand behind routing; but a launch needs it, and waits for it.

    Its words name files, tables, roles, accounts and other hosts: a client hears `STORE_HINT` whatever happened.
    """

    source = Source.OPERATOR
    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message, peer_hint=STORE_HINT)


class StoreUnusable(StoreError):
    """The store is not ours, newer than we are, or damaged: nothing changes until somebody acts."""

    retryable = False
