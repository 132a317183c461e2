"""The daemon's errors: what can go wrong, who caused it, and what the client is told.

The module that calls a library converts the library's exceptions (OSError, boto3, OpenSSL) into these, with
`raise ... from exc`. All other modules see only these errors. It must never hold a secret or another tenant's name in words
that a client gets.
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

    `status` is the gRPC status that the client gets. `peer_hint` is the message that the client gets: it never holds a
    secret or another tenant's name. `str(error)` is for the operator's log.
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
    """The client sent no token, or a token that the daemon does not know."""

    status = GrpcStatus.UNAUTHENTICATED


class TokensUnknown(BentpipeError):
    """The configuration does not have the token. The store may have it, but has not answered yet."""

    source = Source.OPERATOR
    status = GrpcStatus.UNAVAILABLE
    retryable = True


SATELLITE_WORDS = "no such satellite, or not yours"


class NoSuchSatellite(Refused):
    """The satellite is unknown, or the client may not use it. Both get one answer, so that names cannot be probed."""

    status = GrpcStatus.NOT_FOUND


class InvalidMetadata(Refused):
    """The request's metadata is missing a field, repeats one, or is malformed."""

    status = GrpcStatus.INVALID_ARGUMENT


class InvalidRequest(Refused):
    """A call's message is missing a field, or has one that is malformed."""

    status = GrpcStatus.INVALID_ARGUMENT


class NotPermitted(Refused):
    """The caller may use the satellite, but may not do this to it."""

    status = GrpcStatus.PERMISSION_DENIED


class NotServed(Refused):
    """The daemon does not do this."""

    status = GrpcStatus.UNIMPLEMENTED


class SleepRefused(Refused):
    """The satellite cannot be put to sleep now; `peer_hint` says why."""

    status = GrpcStatus.ABORTED


class SatelliteExists(Refused):
    """There is another satellite of that name."""

    status = GrpcStatus.ALREADY_EXISTS


class SatelliteBeingRemoved(Refused):
    """The satellite of that name is being removed."""

    status = GrpcStatus.ABORTED
    retryable = True


class SatelliteBeingUpdated(Refused):
    """The satellite of that name is being updated."""

    status = GrpcStatus.ABORTED
    retryable = True


class SatelliteInUse(Refused):
    """The satellite is not removed, since a client uses it."""

    status = GrpcStatus.ABORTED


class RemovalUnfinished(BentpipeError):
    """A satellite takes no clients any more, but its machine could not be destroyed yet. `peer_hint` says why."""

    source = Source.PROVIDER
    status = GrpcStatus.ABORTED
    retryable = True


class UpdateGivenUp(BentpipeError):
    """A satellite could not be updated, and is what it was. `peer_hint` says why."""

    source = Source.PROVIDER
    status = GrpcStatus.ABORTED


class UpdateUnfinished(BentpipeError):
    """The update of a satellite goes on, or has left it without a machine. `peer_hint` says why."""

    source = Source.PROVIDER
    status = GrpcStatus.ABORTED
    retryable = True


class LimitReached(Refused):
    """A named limit of the configuration is used up."""

    status = GrpcStatus.RESOURCE_EXHAUSTED
    retryable = True


class TlsWanted(Refused):
    """The client speaks plaintext HTTP/2 to a port that speaks TLS."""

    status = GrpcStatus.FAILED_PRECONDITION


class Cut(BentpipeError):
    """The operator cut the connections of the client's principal or satellite."""

    source = Source.OPERATOR
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class Draining(BentpipeError):
    """The daemon is shutting down and accepts no more clients."""

    status = GrpcStatus.UNAVAILABLE
    retryable = True


class WakeFailed(BentpipeError):
    """The satellite could not be woken, or not before the deadline; carries the provider's reason."""

    source = Source.SATELLITE
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class SatelliteUnusable(BentpipeError):
    """The satellite is FAILED, OFFLINE or being destroyed: it cannot be woken until somebody acts."""

    source = Source.SATELLITE
    status = GrpcStatus.FAILED_PRECONDITION


class DialFailed(BentpipeError):
    """The satellite is awake, but its address could not be reached before the deadline or no HTTP/2 server answers there."""

    source = Source.SATELLITE
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class MachineUncertain(BentpipeError):
    """The satellite is awake, but its address may belong to another machine by now, and the daemon cannot find out."""

    source = Source.PROVIDER
    status = GrpcStatus.UNAVAILABLE
    retryable = True


class ProviderError(BentpipeError):
    """Base of the errors that a provider can raise. The subclass decides what the wake loop does about it."""

    source = Source.PROVIDER
    status = GrpcStatus.UNAVAILABLE


class ProviderRetryable(ProviderError):
    """A passing fault: the same call may work a moment later."""

    retryable = True


class ProviderUnreachable(ProviderRetryable):
    """There is no provider at its address. It may pass, but mostly people must act: clients are told soon."""


class ProviderThrottled(ProviderRetryable):
    """Too many calls: the same call may work later, and fewer calls help."""


class ProviderCapacity(ProviderError):
    """The cloud has no such machine free now: try again in minutes."""

    retryable = True


class MachineNotFound(ProviderError):
    """The provider knows no machine by that id."""


class ProviderPermanent(ProviderError):
    """The configuration or the machine is wrong, and people must act. The daemon tries again from time to time by itself."""


class ProviderRefused(ProviderError):
    """The call was refused for an unforeseen reason: it may pass by itself, or people must act."""

    retryable = True


class ProviderPermission(ProviderPermanent):
    """The daemon has no permission for the call, or the provider has none on its behalf."""


class LaunchTokenSpent(ProviderPermanent):
    """The launch token has already made a machine, which is gone. Another machine needs another token."""


class SpareUnusable(ProviderError):
    """A machine of the reserve cannot become a satellite's: it is destroyed, and another one is launched."""


class SleepModeRefused(ProviderError):
    """The machine cannot sleep in the requested way (for example hibernate); another way may work."""


class SleepTooEarly(ProviderRetryable):
    """The machine has not run long enough to be put to sleep (EC2: about two minutes). It works later."""


class SleepVetoed(ProviderRetryable):
    """Somebody uses the machine, here or on another host, or the daemon cannot find out. It counts as used just now."""


STORE_HINT = "the edge host's store, which this needs, cannot be used now"


class StoreError(BentpipeError):
    """The store could not be read or written. Routing goes on without it, but a launch needs it and waits for it.

    Its message names files, tables, roles, accounts and other hosts. So a client always gets `STORE_HINT` instead.
    """

    source = Source.OPERATOR
    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message, peer_hint=STORE_HINT)


class StoreUnusable(StoreError):
    """The store is not ours, newer than we are, or damaged: nothing changes until somebody acts."""

    retryable = False
