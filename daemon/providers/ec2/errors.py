"""The meaning of EC2's errors: one table from AWS's codes to what the wake and sleep loops do about them.

Sources of the table: [E] "Error codes for the Amazon EC2 API" (AWS), [T] AWS's pages on troubleshooting launch and
hibernation, [B] botocore's list of transient and throttled errors (botocore/retries/standard.py), [S] seen in practice, in
the issues of tools that start and stop instances. AWS's own message is kept for the operator. A client gets the code and its
meaning. It must never get AWS's message, which names accounts, roles and other people's instances.
"""

import enum
import re

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
    SleepModeRefused,
    SleepTooEarly,
)


class Verdict(enum.Enum):
    """The meaning of an error, as clients read it."""

    RETRYABLE = "a passing failure of the cloud"
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


VERDICTS = {
    # [B], [E]: the caller is not the cause.
    "InternalError": Verdict.RETRYABLE,
    "InternalFailure": Verdict.RETRYABLE,
    "ServiceUnavailable": Verdict.RETRYABLE,
    "Unavailable": Verdict.RETRYABLE,
    "ServerInternal": Verdict.RETRYABLE,
    "RequestTimeout": Verdict.RETRYABLE,
    "RequestTimeoutException": Verdict.RETRYABLE,
    # [E]; an instance that is stopping cannot be started, nor one that is pending stopped [S: openshift/hive#1206].
    "IncorrectInstanceState": Verdict.WRONG_STATE,
    "IncorrectState": Verdict.WRONG_STATE,
    # [E]: an interrupted Spot instance, for as long as its request is being changed [S: gitlab-runner, cloud-custodian].
    "IncorrectSpotRequestState": Verdict.WRONG_STATE,
    "ConcurrentModification": Verdict.RETRYABLE,
    # [B]
    "RequestLimitExceeded": Verdict.THROTTLED,
    "Throttling": Verdict.THROTTLED,
    "ThrottlingException": Verdict.THROTTLED,
    "EC2ThrottledException": Verdict.THROTTLED,
    "BandwidthLimitExceeded": Verdict.THROTTLED,
    "SlowDown": Verdict.THROTTLED,
    # [E], and Karpenter's list of what is not available now: another attempt in some minutes may work.
    "InsufficientInstanceCapacity": Verdict.CAPACITY,
    "InsufficientHostCapacity": Verdict.CAPACITY,
    "InsufficientReservedInstanceCapacity": Verdict.CAPACITY,
    "InsufficientCapacityOnOutpost": Verdict.CAPACITY,
    "InsufficientAddressCapacity": Verdict.CAPACITY,
    "InsufficientFreeAddressesInSubnet": Verdict.CAPACITY,
    "InsufficientVolumeCapacity": Verdict.CAPACITY,
    "InstanceLimitExceeded": Verdict.CAPACITY,
    "VcpuLimitExceeded": Verdict.CAPACITY,
    "MaxSpotInstanceCountExceeded": Verdict.CAPACITY,
    "SpotMaxPriceTooLow": Verdict.CAPACITY,
    "VolumeLimitExceeded": Verdict.CAPACITY,
    # [E] "ReservationCapacityExceeded": the targeted capacity reservation is full.
    "ReservationCapacityExceeded": Verdict.CAPACITY,
    # [T]: "Your requested instance type is not supported in your requested Availability Zone"; Karpenter does the same.
    "Unsupported": Verdict.CAPACITY,
    "UnfulfillableCapacity": Verdict.CAPACITY,
    # [E]: people must act.
    "UnauthorizedOperation": Verdict.PERMISSION,
    "Blocked": Verdict.PERMISSION,
    "OptInRequired": Verdict.PERMISSION,
    "PendingVerification": Verdict.PERMISSION,
    "AccessDenied": Verdict.PERMISSION,
    "AccessDeniedException": Verdict.PERMISSION,
    "OperationNotPermitted": Verdict.PERMISSION,
    # [E], and "Common errors" of AWS's APIs: the credentials are old, unknown or not there, or the clock is wrong. Others
    # may come with the next client.
    "AuthFailure": Verdict.CREDENTIALS,
    "ExpiredToken": Verdict.CREDENTIALS,
    "ExpiredTokenException": Verdict.CREDENTIALS,
    "RequestExpired": Verdict.CREDENTIALS,
    "RequestInTheFuture": Verdict.CREDENTIALS,
    "InvalidClientTokenId": Verdict.CREDENTIALS,
    "UnrecognizedClientException": Verdict.CREDENTIALS,
    "SignatureDoesNotMatch": Verdict.CREDENTIALS,
    "InvalidSignatureException": Verdict.CREDENTIALS,
    "IncompleteSignature": Verdict.CREDENTIALS,
    "MissingAuthenticationToken": Verdict.CREDENTIALS,
    "MissingAuthenticationTokenException": Verdict.CREDENTIALS,
    # [E]
    "UnsupportedOperation": Verdict.PERMANENT,
    # [E]
    "InvalidInstanceID.NotFound": Verdict.NOT_FOUND,
    "InvalidInstanceID.Malformed": Verdict.NOT_FOUND,
    # [T]; [S: instance-scheduler-on-aws#510]
    "UnsupportedHibernationConfiguration": Verdict.NO_HIBERNATION,
    # [E]
    "IdempotentParameterMismatch": Verdict.MISMATCH,
    "IdempotentInstanceTerminated": Verdict.SPENT,
}
"""By AWS's code. A code that is not here is looked up in FAMILIES, and then by its HTTP status."""

FAMILIES = (
    (re.compile(r"Throttl|TooManyRequests"), Verdict.THROTTLED),
    (
        re.compile(r"^Insufficient.*Capacity|(Limit|Quota|Capacity|Count)Exceeded$|^CapacityReservation"),
        Verdict.CAPACITY,
    ),
    (re.compile(r"^(Invalid|Malformed|Missing|Unknown|NoSuch)|NotSupported"), Verdict.PERMANENT),
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

    def __init__(self, api: str, code: str, words: str, verdict: Verdict, *, doubts_client: bool = False) -> None:
        """`doubts_client`: the call may work with a new client, which looks for credentials again."""
        super().__init__(f"{api}: {code}: {words}")
        self.api = api
        self.code = code
        self.words = words
        self.verdict = verdict
        self.doubts_client = doubts_client or verdict is Verdict.CREDENTIALS

    def named(self, instance_ids: list[str]) -> list[str]:
        """The ids of `instance_ids` that AWS's message names."""
        names = set(INSTANCE_ID.findall(self.words))
        return [each for each in instance_ids if each in names]

    def to_error(self) -> ProviderError:
        """Make the error for the fleet."""
        hint = TURN_OVER if self.code == NOT_PERMITTED else f"{self.verdict.value} ({self.code})"
        return ERRORS[self.verdict](str(self), peer_hint=hint)


ERRORS: dict[Verdict, type[ProviderError]] = {
    Verdict.RETRYABLE: ProviderRetryable,
    Verdict.WRONG_STATE: ProviderRetryable,
    Verdict.THROTTLED: ProviderThrottled,
    Verdict.CAPACITY: ProviderCapacity,
    Verdict.PERMISSION: ProviderPermission,
    Verdict.CREDENTIALS: ProviderPermission,
    Verdict.NOT_FOUND: MachineNotFound,
    Verdict.NO_HIBERNATION: SleepModeRefused,
    Verdict.TOO_EARLY: SleepTooEarly,
    Verdict.MISMATCH: ProviderPermanent,
    Verdict.SPENT: LaunchTokenSpent,
    Verdict.PERMANENT: ProviderPermanent,
    Verdict.UNKNOWN: ProviderRefused,
}


def failure_of(api: str, exc: Exception) -> Ec2Failure:
    """Make an Ec2Failure of any exception that a call has raised.

    Beside botocore's own errors these are: LookupError from an answer that lacks a part (a proxy's page, for example),
    ValueError from text that is not JSON or not an endpoint, OSError from files and programs that give credentials,
    RuntimeError from botocore's renewal of credentials and from threads that cannot be started, and new ones of botocore's
    next version.
    """
    code, words = type(exc).__name__, str(exc)
    doubts_client = not isinstance(exc, ClientError | HTTPClientError | BotoConnectionError | PermitOver)
    match exc:
        case ClientError():
            error = exc.response.get("Error", {})
            status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code, words = _code_of(error.get("Code") or str(status)), error.get("Message") or ""
            verdict = verdict_of(code, words, status)
        case PermitOver():
            code, words, verdict = NOT_PERMITTED, TURN_OVER, Verdict.RETRYABLE
        case HTTPClientError() | BotoConnectionError() | MetadataRetrievalError() | CredentialRetrievalError():
            code, words, verdict = UNANSWERED, f"{code}: {words}", Verdict.RETRYABLE
        case ResponseParserError() | LookupError():
            code, words, verdict = UNINTELLIGIBLE, f"{code}: {words}", Verdict.RETRYABLE
        case NoCredentialsError() | PartialCredentialsError() | ProfileNotFound() | SSOError() | TokenRetrievalError():
            verdict = Verdict.CREDENTIALS
        case NoRegionError():
            words, verdict = f"{words} Set `region` in [ec2].", Verdict.PERMANENT
        case BotoCoreError():  # parameters, configuration
            verdict = Verdict.PERMANENT
        case ValueError() if words.startswith(INVALID_ENDPOINT):
            verdict = Verdict.PERMANENT
        case _:  # any other error may pass, and is tried again
            verdict = Verdict.RETRYABLE
    return Ec2Failure(api, code, words, verdict, doubts_client=doubts_client)


def _code_of(said: object) -> str:
    """The code of an answer, if it has the form of one: clients, the log and metrics repeat it."""
    return said if isinstance(said, str) and CODE.fullmatch(said) else UNINTELLIGIBLE


def verdict_of(code: str, words: str, http_status: int) -> Verdict:
    """Decide by the table, then by the code's family, then by the HTTP status."""
    if code == "UnsupportedOperation" and UNREADY.search(words):
        return Verdict.TOO_EARLY
    if (found := VERDICTS.get(code)) is not None:
        return found
    family = next((verdict for names, verdict in FAMILIES if names.search(code)), None)
    if family is not None:
        return family
    return Verdict.RETRYABLE if http_status >= 500 else Verdict.UNKNOWN
