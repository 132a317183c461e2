"""What EC2's errors mean to us: one table from AWS's codes to what the wake and sleep loops do about them.

Sources of the table: [E] "Error codes for the Amazon EC2 API" (AWS), [T] AWS's pages on troubleshooting launch and
hibernation, [B] botocore's list of what is transient or throttled (botocore/retries/standard.py), [S] seen in the wild,
in the issues of tools that start and stop instances. AWS's own words are kept, for the operator. A client is told the
code and what it means, never AWS's text: that names accounts, roles and other people's instances.
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
    """What is to be done about an error."""

    RETRYABLE = "passing trouble at the cloud"
    WRONG_STATE = "the machine is between two states"
    THROTTLED = "too many calls to the cloud"
    CAPACITY = "the cloud has no such machine to give now"
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
    # [B], [E]: nothing of it is the caller's fault.
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
    # [E], and Karpenter's list of what cannot be had now: worth another attempt in minutes.
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
    # [T]: "Your requested instance type is not supported in your requested Availability Zone"; Karpenter takes it so too.
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
"""By AWS's code. What is not here goes by FAMILIES, and then by its HTTP status."""

FAMILIES = (
    (re.compile(r"Throttl|TooManyRequests"), Verdict.THROTTLED),
    (
        re.compile(r"^Insufficient.*Capacity|(Limit|Quota|Capacity|Count)Exceeded$|^CapacityReservation"),
        Verdict.CAPACITY,
    ),
    (re.compile(r"^(Invalid|Malformed|Missing|Unknown|NoSuch)|NotSupported"), Verdict.PERMANENT),
)
"""By how AWS names its codes [E]. Of what no family has, 5xx is transient [E]; the rest is tried again, ever more rarely:
AWS adds codes, and one that nobody knows must not put a satellite out of service."""

INVALID_ENDPOINT = "Invalid endpoint"
"""botocore's words, in a plain ValueError (botocore/args.py, botocore/regions.py)."""

UNREADY = re.compile(r"not ready to hibernate", re.IGNORECASE)
"""EC2's words, under the code UnsupportedOperation, in the first two minutes after launch [T, S]."""

CODE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}|[0-9]{3}")
"""How EC2's codes look [E]; botocore puts the HTTP status where there is none. All else is a proxy's, or nothing."""

INSTANCE_ID = re.compile(r"\bi-[0-9a-f]+\b")

UNANSWERED = "Unanswered"
"""Our own code for calls that got no answer: no connection, a broken one, or a timeout."""
UNINTELLIGIBLE = "Unintelligible"
"""Our own code for an answer that is not EC2's."""
NOT_PERMITTED = "NotPermitted"
"""Our own code for a call that was not sent: the turn in which it was asked for is over."""
TURN_OVER = "the call was not sent, since this edge host's turn on the machine is over"


class PermitOver(Exception):
    """Raised where the request would be sent."""


class Ec2Failure(Exception):
    """A call failed: AWS's code, AWS's words, and what they mean. Stays inside this package."""

    def __init__(self, api: str, code: str, words: str, verdict: Verdict, *, doubts_client: bool = False) -> None:
        """`doubts_client`: another client, with credentials that are looked for anew, may do better."""
        super().__init__(f"{api}: {code}: {words}")
        self.api = api
        self.code = code
        self.words = words
        self.verdict = verdict
        self.doubts_client = doubts_client or verdict is Verdict.CREDENTIALS

    def named(self, instance_ids: list[str]) -> list[str]:
        """Those of `instance_ids` that AWS's words name."""
        names = set(INSTANCE_ID.findall(self.words))
        return [each for each in instance_ids if each in names]

    def to_error(self) -> ProviderError:
        """The error for the fleet."""
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
    """Read what a call has raised, whatever it is.

    Beside botocore's own: LookupError from answers that lack what EC2's have (a proxy's page, say), ValueError from what
    is no JSON or no endpoint, OSError from files and programs that credentials come from, RuntimeError from botocore's
    renewal of them and from threads that cannot be had; and what the next version raises.
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
        case _:  # whatever else: it may pass, and is tried again
            verdict = Verdict.RETRYABLE
    return Ec2Failure(api, code, words, verdict, doubts_client=doubts_client)


def _code_of(said: object) -> str:
    """What an answer gives for its code, if it can be one: clients, the log and metrics repeat it."""
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
