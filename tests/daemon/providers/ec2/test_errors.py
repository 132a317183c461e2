"""The table of EC2's errors: every code has one meaning, the words are kept, and clients are told none of them."""

import email.utils
import errno
import json
import socket

import pytest
import urllib3.exceptions
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from bentpipe.daemon import errors
from bentpipe.daemon.providers.ec2.errors import (
    ERRORS,
    KINDS,
    UNANSWERED,
    UNINTELLIGIBLE,
    UNREACHED,
    FailureKind,
    PermitOver,
    clock_words,
    failure_of,
    kind_of,
)


def answer(code: str, message: str, status: int = 400) -> ClientError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "StartInstances")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("RequestLimitExceeded", errors.ProviderThrottled),
        ("InsufficientInstanceCapacity", errors.ProviderCapacity),
        ("VcpuLimitExceeded", errors.ProviderCapacity),
        ("InsufficientFreeAddressesInSubnet", errors.ProviderCapacity),
        ("IncorrectInstanceState", errors.ProviderRetryable),
        ("InternalError", errors.ProviderRetryable),
        ("Unavailable", errors.ProviderRetryable),
        ("UnauthorizedOperation", errors.ProviderPermission),
        ("AuthFailure", errors.ProviderPermission),
        ("ExpiredToken", errors.ProviderPermission),
        ("SomethingNobodyKnows", errors.ProviderRefused),
        ("IncorrectSpotRequestState", errors.ProviderRetryable),
        *(
            (code, errors.ProviderCapacity)
            for code in (
                "ReservationCapacityExceeded",
                "InsufficientReservedInstanceCapacity",
                "InsufficientSomethingNewCapacity",
                "CapacityReservationSomethingNew",
                "MaxSpotInstanceCountExceeded",
                "MaxSpotFleetRequestCountExceeded",
                "SpotMaxPriceTooLow",
                "Unsupported",
                "SomethingNewLimitExceeded",
                "VolumeIOPSQuotaExceeded",
            )
        ),
        ("SomethingNewThrottled", errors.ProviderThrottled),
        ("InvalidInstanceID.NotFound", errors.MachineNotFound),
        ("UnsupportedHibernationConfiguration", errors.SleepModeRefused),
        ("IdempotentParameterMismatch", errors.ProviderPermanent),
        ("IdempotentInstanceTerminated", errors.LaunchTokenSpent),
        ("InvalidParameterValue", errors.ProviderPermanent),
        ("InvalidLaunchTemplateName.NotFoundException", errors.ProviderPermanent),
        ("UnsupportedOperation", errors.ProviderPermanent),
    ],
)
def test_what_the_fleet_gets(code: str, error: type[errors.ProviderError]) -> None:
    found = failure_of("StartInstances", answer(code, "words of 123456789012")).to_error()
    assert type(found) is error
    assert str(found) == f"StartInstances: {code}: words of 123456789012"
    assert code in found.peer_hint
    assert "123456789012" not in found.peer_hint


def test_every_verdict_has_an_error_and_is_used() -> None:
    assert set(ERRORS) == set(FailureKind)
    assert set(KINDS.values()) | {FailureKind.TOO_EARLY, FailureKind.UNKNOWN, FailureKind.UNREACHABLE} == set(
        FailureKind
    )


def test_too_early_is_known_by_its_words() -> None:
    words = "Instance i-0123456789abcdef0 is not ready to hibernate yet, retry in a few minutes."
    assert kind_of("UnsupportedOperation", words, 400) is FailureKind.TOO_EARLY


@pytest.mark.parametrize(
    ("status", "kind"), [(500, FailureKind.RETRYABLE), (503, FailureKind.RETRYABLE), (400, FailureKind.UNKNOWN)]
)
def test_unknown_codes_go_by_their_status(status: int, kind: FailureKind) -> None:
    assert kind_of("Nonsense", "", status) is kind


STILL_EXPIRED = "Credentials were refreshed, but the refreshed credentials are still expired."


@pytest.mark.parametrize(
    ("exc", "code", "kind"),
    [
        (NoCredentialsError(), "NoCredentialsError", FailureKind.CREDENTIALS),
        (NoRegionError(), "NoRegionError", FailureKind.PERMANENT),
        (ProfileNotFound(profile="x"), "ProfileNotFound", FailureKind.CREDENTIALS),
        (ParamValidationError(report="x"), "ParamValidationError", FailureKind.PERMANENT),
        (ValueError("Invalid endpoint: x"), "ValueError", FailureKind.PERMANENT),
        (ValueError("of a plug-in"), "ValueError", FailureKind.RETRYABLE),
        (json.JSONDecodeError("x", "", 0), "JSONDecodeError", FailureKind.RETRYABLE),
        (RuntimeError(STILL_EXPIRED), "RuntimeError", FailureKind.RETRYABLE),
        (
            FileNotFoundError(2, "No such file or directory", "/nonexistent/tool"),
            "FileNotFoundError",
            FailureKind.RETRYABLE,
        ),
        (OSError(24, "Too many open files"), "OSError", FailureKind.RETRYABLE),
        (MemoryError(), "MemoryError", FailureKind.RETRYABLE),
        (type("OfAPlugIn", (Exception,), {})("x"), "OfAPlugIn", FailureKind.RETRYABLE),
        (CredentialRetrievalError(provider="x", error_msg="x"), UNANSWERED, FailureKind.RETRYABLE),
        (ResponseParserError("x"), UNINTELLIGIBLE, FailureKind.RETRYABLE),
        (KeyError("Reservations"), UNINTELLIGIBLE, FailureKind.RETRYABLE),
        (ConnectTimeoutError(endpoint_url="https://x"), UNANSWERED, FailureKind.RETRYABLE),
        (ReadTimeoutError(endpoint_url="https://x"), UNANSWERED, FailureKind.RETRYABLE),
    ],
)
def test_what_is_not_an_answer_of_aws(exc: Exception, code: str, kind: FailureKind) -> None:
    failure = failure_of("StartInstances", exc)
    assert (failure.code, failure.kind) == (code, kind)


def test_the_named_are_whole_ids() -> None:
    failure = failure_of("StopInstances", answer("IncorrectInstanceState", "The instance 'i-0123456789abcdef0' is not"))
    assert failure.named(["i-01234567", "i-0123456789abcdef0"]) == ["i-0123456789abcdef0"]


@pytest.mark.parametrize("status", [400, 503])
@pytest.mark.parametrize("code", [None, "", "two\nlines 123456789012", "x" * 5000, "123456789012", "caf\u00e9", 7])
def test_a_code_that_cannot_be_one_is_not_repeated(code: object, status: int) -> None:
    """A proxy answers what it likes: clients, the log and the metrics would have had it."""
    failure = failure_of("StartInstances", answer(code, "no words", status))  # type: ignore[arg-type]
    assert failure.code == (UNINTELLIGIBLE if code else str(status))
    assert failure.kind is (FailureKind.UNKNOWN if status == 400 else FailureKind.RETRYABLE)
    assert failure.code in failure.to_error().peer_hint


def test_the_cloud_is_not_blamed_for_a_call_that_was_not_sent() -> None:
    error = failure_of("StartInstances", PermitOver()).to_error()
    assert isinstance(error, errors.ProviderRetryable)
    assert "cloud" not in error.peer_hint
    assert "turn" in error.peer_hint


def refused_at(url: str, cause: BaseException) -> Exception:
    """As botocore raises it: its own exception around urllib3's around the system's."""
    inner = urllib3.exceptions.NewConnectionError(None, "failed")  # type: ignore[arg-type]
    inner.__cause__ = cause
    return EndpointConnectionError(endpoint_url=url, error=inner)


HOST = "ec2.eu-centrl-1.amazonaws.com"


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (refused_at(f"https://{HOST}/", socket.gaierror(socket.EAI_NONAME, "unknown")), f"there is no host {HOST}"),
        (refused_at("http://127.0.0.1:9/x", ConnectionRefusedError()), "nothing listens at http://127.0.0.1:9"),
        (refused_at("http://[::1]:9/", OSError(errno.ENETUNREACH, "no")), "there is no route to http://[::1]:9"),
        (
            ProxyConnectionError(proxy_url="http://me:secret@proxy:3128", error=ConnectionRefusedError()),
            "nothing listens at http://proxy:3128",
        ),
    ],
)
def test_an_address_that_is_none_is_told_soon_with_its_name_and_region(exc: Exception, words: str) -> None:
    failure = failure_of("DescribeInstances", exc, "eu-centrl-1")
    error = failure.to_error()
    assert (failure.code, type(error), failure.is_refusal) == (UNREACHED, errors.ProviderUnreachable, False)
    assert error.peer_hint == f"the cloud cannot be reached: {words}; the region is eu-centrl-1 (Unreached)"
    assert "secret" not in error.peer_hint


@pytest.mark.parametrize(
    "exc",
    [
        refused_at(f"https://{HOST}/", socket.gaierror(socket.EAI_AGAIN, "no name server")),
        refused_at(f"https://{HOST}/", OSError(errno.ECONNRESET, "broken")),
        ConnectTimeoutError(endpoint_url=f"https://{HOST}/"),
        ReadTimeoutError(endpoint_url=f"https://{HOST}/"),
    ],
)
def test_no_answer_at_all_may_pass(exc: Exception) -> None:
    failure = failure_of("DescribeInstances", exc)
    assert (failure.code, type(failure.to_error())) == (UNANSWERED, errors.ProviderRetryable)


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(3_600, "1:00:00 ahead of"), (-90_000, "1 day, 1:00:00 behind"), (30, ""), (-200, "")]
)
def test_a_clock_that_is_wrong_is_named(ahead_s: float, words: str) -> None:
    date = email.utils.formatdate(1_000_000_000, usegmt=True)
    found = clock_words(date, 1_000_000_000 + ahead_s)
    assert found == (f"this edge host's clock is {words} the cloud's: set it" if words else "")
    assert not clock_words("yesterday", ahead_s)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("VcpuLimitExceeded", "a quota of the account is used up (VcpuLimitExceeded)"),
        ("InstanceLimitExceeded", "a quota of the account is used up (InstanceLimitExceeded)"),
        ("InsufficientInstanceCapacity", "the cloud has no such machine free now (InsufficientInstanceCapacity)"),
        ("UnauthorizedOperation", "the cloud forbids it: StartInstances (UnauthorizedOperation)"),
    ],
)
def test_what_a_client_reads_says_who_can_mend_it(code: str, words: str) -> None:
    assert failure_of("StartInstances", answer(code, "of 123456789012")).to_error().peer_hint == words
