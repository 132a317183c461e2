"""The meaning of EC2's errors: one table from AWS's codes to what the wake and sleep loops do about them.

Sources of the table: [E] "Error codes for the Amazon EC2 API" (AWS), [T] AWS's pages on troubleshooting launch and
hibernation, [B] botocore's list of transient and throttled errors (botocore/retries/standard.py), [S] seen in practice, in
the issues of tools that start and stop instances. AWS's own message is kept for the operator. A client gets the code and its
meaning. It must never get AWS's message, which names accounts, roles and other people's instances.
"""

import datetime
import email.utils
import enum
import re
import time
from collections.abc import Iterable

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from bentpipe.daemon.errors import (
    LaunchTokenSpent,
    MachineNotFound,
    ProviderCapacity,
    ProviderError,
    ProviderPermanent,
    ProviderPermission,
    ProviderRefused,
    ProviderRetryable,
    ProviderThrottled,
    ProviderUnreachable,
    SleepModeRefused,
    SleepTooEarly,
)
from bentpipe.daemon.providers.ec2.unreached import unreached_words

NO_SPOT_REQUEST = "InvalidSpotInstanceRequestID.NotFound"


class FailureKind(enum.Enum):
    """The meaning of an error, as clients read it."""

    RETRYABLE = "a passing failure of the cloud"
    UNREACHABLE = "the cloud cannot be reached"
    WRONG_STATE = "the machine is between two states"
    THROTTLED = "too many calls to the cloud"
    CAPACITY = "the cloud has no such machine free now"
    PERMISSION = "the cloud forbids it"
    CREDENTIALS = "the cloud does not accept this edge host's credentials, or there are none"
    NOT_FOUND = "no such machine"
    NO_HIBERNATION = "the machine cannot hibernate"
    TOO_EARLY = "the machine cannot hibernate yet"
    MISMATCH = "a launch was repeated with other parameters"
    SPENT = "the machine that was launched is gone"
    PERMANENT = "the cloud refuses the request as it is configured"
    UNKNOWN = "the cloud refuses the request"


KINDS = {
    # [B], [E]: the caller is not the cause.
    "InternalError": FailureKind.RETRYABLE,
    "InternalFailure": FailureKind.RETRYABLE,
    "ServiceUnavailable": FailureKind.RETRYABLE,
    "Unavailable": FailureKind.RETRYABLE,
    "ServerInternal": FailureKind.RETRYABLE,
    "RequestTimeout": FailureKind.RETRYABLE,
    "RequestTimeoutException": FailureKind.RETRYABLE,
    # [E]; an instance that is stopping cannot be started, nor one that is pending stopped [S: openshift/hive#1206].
    "IncorrectInstanceState": FailureKind.WRONG_STATE,
    "IncorrectState": FailureKind.WRONG_STATE,
    # [E]: an interrupted Spot instance, for as long as its request is being changed [S: gitlab-runner, cloud-custodian].
    "IncorrectSpotRequestState": FailureKind.WRONG_STATE,
    "ConcurrentModification": FailureKind.RETRYABLE,
    # [B]
    "RequestLimitExceeded": FailureKind.THROTTLED,
    "Throttling": FailureKind.THROTTLED,
    "ThrottlingException": FailureKind.THROTTLED,
    "EC2ThrottledException": FailureKind.THROTTLED,
    "BandwidthLimitExceeded": FailureKind.THROTTLED,
    "SlowDown": FailureKind.THROTTLED,
    # [E], and Karpenter's list of what is not available now: another attempt in some minutes may work.
    "InsufficientInstanceCapacity": FailureKind.CAPACITY,
    "InsufficientHostCapacity": FailureKind.CAPACITY,
    "InsufficientReservedInstanceCapacity": FailureKind.CAPACITY,
    "InsufficientCapacityOnOutpost": FailureKind.CAPACITY,
    "InsufficientAddressCapacity": FailureKind.CAPACITY,
    "InsufficientFreeAddressesInSubnet": FailureKind.CAPACITY,
    "InsufficientVolumeCapacity": FailureKind.CAPACITY,
    "InstanceLimitExceeded": FailureKind.CAPACITY,
    "VcpuLimitExceeded": FailureKind.CAPACITY,
    "MaxSpotInstanceCountExceeded": FailureKind.CAPACITY,
    "SpotMaxPriceTooLow": FailureKind.CAPACITY,
    "VolumeLimitExceeded": FailureKind.CAPACITY,
    # [E] "ReservationCapacityExceeded": the targeted capacity reservation is full.
    "ReservationCapacityExceeded": FailureKind.CAPACITY,
    # [T]: "Your requested instance type is not supported in your requested Availability Zone"; Karpenter does the same.
    "Unsupported": FailureKind.CAPACITY,
    "UnfulfillableCapacity": FailureKind.CAPACITY,
    # [E]: people must act.
    "UnauthorizedOperation": FailureKind.PERMISSION,
    "Blocked": FailureKind.PERMISSION,
    "OptInRequired": FailureKind.PERMISSION,
    "PendingVerification": FailureKind.PERMISSION,
    "AccessDenied": FailureKind.PERMISSION,
    "AccessDeniedException": FailureKind.PERMISSION,
    "OperationNotPermitted": FailureKind.PERMISSION,
    # [E], and "Common errors" of AWS's APIs: the credentials are old, unknown or not there, or the clock is wrong. Others
    # may come with the next client.
    "AuthFailure": FailureKind.CREDENTIALS,
    "ExpiredToken": FailureKind.CREDENTIALS,
    "ExpiredTokenException": FailureKind.CREDENTIALS,
    "RequestExpired": FailureKind.CREDENTIALS,
    "RequestInTheFuture": FailureKind.CREDENTIALS,
    "InvalidClientTokenId": FailureKind.CREDENTIALS,
    "UnrecognizedClientException": FailureKind.CREDENTIALS,
    "SignatureDoesNotMatch": FailureKind.CREDENTIALS,
    "InvalidSignatureException": FailureKind.CREDENTIALS,
    "IncompleteSignature": FailureKind.CREDENTIALS,
    "MissingAuthenticationToken": FailureKind.CREDENTIALS,
    "MissingAuthenticationTokenException": FailureKind.CREDENTIALS,
    # [E]
    "UnsupportedOperation": FailureKind.PERMANENT,
    # [E]
    "InvalidInstanceID.NotFound": FailureKind.NOT_FOUND,
    "InvalidInstanceID.Malformed": FailureKind.NOT_FOUND,
    # [T]; [S: instance-scheduler-on-aws#510]
    "UnsupportedHibernationConfiguration": FailureKind.NO_HIBERNATION,
    # [E]
    "IdempotentParameterMismatch": FailureKind.MISMATCH,
    "IdempotentInstanceTerminated": FailureKind.SPENT,
}
"""By AWS's code. A code that is not here is looked up in FAMILIES, and then by its HTTP status."""

FAMILIES = (
    (re.compile(r"Throttl|TooManyRequests"), FailureKind.THROTTLED),
    (
        re.compile(r"^Insufficient.*Capacity|(Limit|Quota|Capacity|Count)Exceeded$|^CapacityReservation"),
        FailureKind.CAPACITY,
    ),
    (re.compile(r"^(Invalid|Malformed|Missing|Unknown|NoSuch)|NotSupported"), FailureKind.PERMANENT),
)
"""By the pattern of AWS's code [E]. If no family fits, 5xx is transient [E]. All others are tried again, ever more rarely:
AWS adds codes, and an unknown one must not put a satellite out of service."""

INVALID_ENDPOINT = "Invalid endpoint"
"""botocore's message, in a plain ValueError (botocore/args.py, botocore/regions.py)."""

UNREADY = re.compile(r"not ready to hibernate", re.IGNORECASE)
"""EC2's message with the code UnsupportedOperation, in the first two minutes after launch [T, S]."""

CODE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}|[0-9]{3}")
"""The form of EC2's codes [E]. If there is none, botocore gives the HTTP status. Other text comes from a proxy."""

INSTANCE_ID = re.compile(r"\bi-[0-9a-f]+\b")

UNREACHED = "Unreached"
"""Our own code for calls that certainly did not get to EC2: there is no such name, or nothing listens there."""
UNANSWERED = "Unanswered"
"""Our own code for calls that got no answer: no connection, a broken one, or a timeout."""
UNINTELLIGIBLE = "Unintelligible"
"""Our own code for an answer that does not come from EC2."""
NOT_PERMITTED = "NotPermitted"
"""Our own code for a call that was not sent, because the turn in which it was requested is over."""
TURN_OVER = "the call was not sent, since this edge host's turn on the machine is over"


class PermitOver(Exception):
    """The permit of a call is over; raised in place of sending the request."""


class Ec2Failure(Exception):
    """A call has failed: AWS's code, AWS's message, and their meaning. It stays inside this package."""

    def __init__(
        self, api: str, code: str, message: str, kind: FailureKind, *, hint: str = "", doubts_client: bool = False
    ) -> None:
        """`hint` is told to clients in place of the kind's words.

        `doubts_client`: the call may work with a new client, which looks for credentials again.
        """
        super().__init__(f"{api}: {code}: {message}")
        self.api = api
        self.code = code
        self.message = message
        self.kind = kind
        self.hint = hint or _hint_of(kind, api, code)
        self.doubts_client = doubts_client or kind is FailureKind.CREDENTIALS
        self.after_unanswered = False
        """It is the answer to the repetition of a call that was not answered."""

    def named(self, instance_ids: list[str]) -> list[str]:
        """The ids of `instance_ids` that AWS's message names."""
        names = set(INSTANCE_ID.findall(self.message))
        return [each for each in instance_ids if each in names]

    @property
    def is_refusal(self) -> bool:
        """Whether EC2 has answered that it does not carry out the call, or the call was not sent."""
        return self.kind in REFUSALS or self.code == NOT_PERMITTED

    def to_error(self) -> ProviderError:
        """Make the error for the fleet."""
        hint = TURN_OVER if self.code == NOT_PERMITTED else f"{self.hint} ({self.code})"
        return ERRORS[self.kind](str(self), peer_hint=hint)


ERRORS: dict[FailureKind, type[ProviderError]] = {
    FailureKind.RETRYABLE: ProviderRetryable,
    FailureKind.UNREACHABLE: ProviderUnreachable,
    FailureKind.WRONG_STATE: ProviderRetryable,
    FailureKind.THROTTLED: ProviderThrottled,
    FailureKind.CAPACITY: ProviderCapacity,
    FailureKind.PERMISSION: ProviderPermission,
    FailureKind.CREDENTIALS: ProviderPermission,
    FailureKind.NOT_FOUND: MachineNotFound,
    FailureKind.NO_HIBERNATION: SleepModeRefused,
    FailureKind.TOO_EARLY: SleepTooEarly,
    FailureKind.MISMATCH: ProviderPermanent,
    FailureKind.SPENT: LaunchTokenSpent,
    FailureKind.PERMANENT: ProviderPermanent,
    FailureKind.UNKNOWN: ProviderRefused,
}


REFUSALS = frozenset(
    {
        FailureKind.THROTTLED,
        FailureKind.CAPACITY,
        FailureKind.PERMISSION,
        FailureKind.CREDENTIALS,
        FailureKind.NO_HIBERNATION,
        FailureKind.PERMANENT,
        FailureKind.UNKNOWN,
    }
)
"""After these nothing was done. A failure of EC2's own may come after it has done something, and a mismatch says so."""


QUOTA = re.compile(r"^(Instance|Vcpu|Volume)LimitExceeded$|(Limit|Quota|Count)Exceeded$")
"""Codes of the account's own limits [E]: the cloud may have enough machines."""
QUOTA_WORDS = "a quota of the account is used up"
CLOCK_S = 240.0
"""A clock that differs by more from the cloud's is named as the cause if requests are not accepted. AWS allows 300 s."""


def lack_words(codes: Iterable[str]) -> str:
    """What is lacking, if all calls have failed with such codes."""
    return QUOTA_WORDS if all(QUOTA.search(each) for each in codes) else FailureKind.CAPACITY.value


def _hint_of(kind: FailureKind, api: str, code: str) -> str:
    if kind is FailureKind.CAPACITY:
        return lack_words([code])
    return f"{kind.value}: {api}" if kind is FailureKind.PERMISSION else kind.value


def clock_words(date: str, now_s: float) -> str:
    """That this host's clock is wrong, by the field Date of an answer; "" if it is right, or that is not known."""
    try:
        ahead_s = now_s - email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return ""
    if abs(ahead_s) <= CLOCK_S:
        return ""
    by = datetime.timedelta(seconds=round(abs(ahead_s)))
    return f"this edge host's clock is {by} {'ahead of' if ahead_s > 0 else 'behind'} the cloud's: set it"


def failure_of(api: str, exc: Exception, region: str = "") -> Ec2Failure:
    """Make an Ec2Failure of any exception that a call has raised. `region` is the one that was called.

    Beside botocore's own errors these are: LookupError from an answer that lacks a part (a proxy's page, for example),
    ValueError from text that is not JSON or not an endpoint, OSError from files and programs that give credentials,
    RuntimeError from botocore's renewal of credentials and from threads that cannot be started, and new ones of botocore's
    next version.
    """
    code, message, hint = type(exc).__name__, str(exc), ""
    doubts_client = not isinstance(exc, ClientError | HTTPClientError | BotoConnectionError | PermitOver)
    match exc:
        case ClientError():
            error = exc.response.get("Error", {})
            status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code, message = _code_of(error.get("Code") or str(status)), error.get("Message") or ""
            kind = kind_of(code, message, status)
            if kind is FailureKind.CREDENTIALS:
                fields = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
                hint = clock_words(fields.get("date", ""), time.time())
        case HTTPClientError() | BotoConnectionError() if words := unreached_words(exc):
            code, message, kind = UNREACHED, f"{code}: {message}", FailureKind.UNREACHABLE
            hint = f"{kind.value}: {words}" + (f"; the region is {region}" if region else "")
        case PermitOver():
            code, message, kind = NOT_PERMITTED, TURN_OVER, FailureKind.RETRYABLE
        case HTTPClientError() | BotoConnectionError() | MetadataRetrievalError() | CredentialRetrievalError():
            code, message, kind = UNANSWERED, f"{code}: {message}", FailureKind.RETRYABLE
        case ResponseParserError() | LookupError():
            code, message, kind = UNINTELLIGIBLE, f"{code}: {message}", FailureKind.RETRYABLE
        case NoCredentialsError() | PartialCredentialsError() | ProfileNotFound() | SSOError() | TokenRetrievalError():
            kind = FailureKind.CREDENTIALS
        case NoRegionError():
            message, kind = f"{message} Set `region` in [ec2].", FailureKind.PERMANENT
        case BotoCoreError():  # parameters, configuration
            kind = FailureKind.PERMANENT
        case ValueError() if message.startswith(INVALID_ENDPOINT):
            kind = FailureKind.PERMANENT
        case _:  # any other error may pass, and is tried again
            kind = FailureKind.RETRYABLE
    return Ec2Failure(api, code, message, kind, hint=hint, doubts_client=doubts_client)


def _code_of(said: object) -> str:
    """The code of an answer, if it has the form of one: clients, the log and metrics repeat it."""
    return said if isinstance(said, str) and CODE.fullmatch(said) else UNINTELLIGIBLE


def kind_of(code: str, message: str, http_status: int) -> FailureKind:
    """Decide by the table, then by the code's family, then by the HTTP status."""
    if code == "UnsupportedOperation" and UNREADY.search(message):
        return FailureKind.TOO_EARLY
    if (found := KINDS.get(code)) is not None:
        return found
    family = next((kind for names, kind in FAMILIES if names.search(code)), None)
    if family is not None:
        return family
    return FailureKind.RETRYABLE if http_status >= 500 else FailureKind.UNKNOWN
