"""Credentials by the operator's names, in texts that have their files' paths."""

from pathlib import Path

import pytest

from bentpipe.daemon.service.credential_names import name_credentials


def test_a_number_of_a_descriptor_that_is_the_beginning_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    newer = {"a.key": Path("/proc/self/fd/2"), "b.pem": Path("/proc/self/fd/21")}
    text = "/proc/self/fd/21: expired; /proc/self/fd/2 is not the key of /proc/self/fd/21"
    assert (
        name_credentials(text, newer)
        == "credential:b.pem: expired; credential:a.key is not the key of credential:b.pem"
    )


@pytest.mark.parametrize("folder", ["/run/credentials/bentpipe.service", "/run/credentials/bentpipe.service/"])
def test_those_of_the_start(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", folder)
    text = "/run/credentials/bentpipe.service/tls.pem and /etc/tls.pem"
    assert name_credentials(text, {}) == "credential:tls.pem and /etc/tls.pem"
