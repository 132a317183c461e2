"""Where the page may be: on a Unix socket or on loopback, and nowhere else."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from bentpipe.config.admin import AdminSection


@pytest.mark.parametrize("address", ["127.0.0.1:8375", "127.1.2.3:0", "[::1]:8375"])
def test_loopback_addresses(address: str) -> None:
    section = AdminSection.model_validate({"address": address})
    assert section.socket_path({"RUNTIME_DIRECTORY": "/run/bentpipe"}) is None


@pytest.mark.parametrize("address", [":8375", "0.0.0.0:8375", "10.0.0.1:8375", "[::]:8375", "[2001:db8::1]:8375"])
def test_other_addresses_are_refused_in_words(address: str) -> None:
    with pytest.raises(ValidationError, match=r"is not a loopback address.*ssh -L"):
        AdminSection.model_validate({"address": address})


def test_the_socket_is_in_the_runtime_directory_by_default() -> None:
    assert AdminSection().socket_path({"RUNTIME_DIRECTORY": "/run/bentpipe:/run/x"}) == Path("/run/bentpipe/admin.sock")
    assert AdminSection().socket_path({}) is None
    assert AdminSection(path=Path("/x")).socket_path({}) == Path("/x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"read_without_token": True}, "is for an address"),
        ({"path": "/" + "x" * 107}, "too many for a socket"),
        ({"hosts": ["Example.com"]}, "pattern"),
        ({"hosts": ["example.com:8375"]}, "pattern"),
        ({"operators": ["*"]}, "pattern"),
        ({"token": "x"}, "Extra inputs"),
    ],
)
def test_mistakes(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AdminSection.model_validate(values)
