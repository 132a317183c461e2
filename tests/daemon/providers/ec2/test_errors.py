"""The table of EC2's errors: every code has one meaning, the words are kept, and clients are told none of them."""

import json

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from bentpipe.daemon import errors
from bentpipe.daemon.providers.ec2.errors import (
    ERRORS,
    KINDS,
    UNANSWERED,
    UNINTELLIGIBLE,
    FailureKind,
    PermitOver,
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
    assert set(KINDS.values()) | {FailureKind.TOO_EARLY, FailureKind.UNKNOWN} == set(FailureKind)


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
