"""Which requests are let in: no foreign name, and no change that another page asks for."""

import pytest

from bentpipe.daemon.admin.guard import CONTENT_POLICY, host_problem, is_same_secret, origin_problem


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "LocalHost:8080", "127.0.0.1:1", "[::1]", "[::1]:8080", "edge.example.com:443"],
)
def test_own_names_are_served(host: str) -> None:
    assert host_problem({"host": host}, {"edge.example.com"}) == ""


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io:8080", "localhost:x"),
        *("localhost, evil.example", "[::2]:80", "10.0.0.1", "0.0.0.0:8080", "localhost."),
    ],
)
def test_other_names_are_refused(host: str) -> None:
    assert "hosts in [admin]" in host_problem({"host": host}, {"edge.example.com"})


def test_a_request_without_host_is_refused() -> None:
    assert host_problem({}, ())


@pytest.mark.parametrize(
    "fields",
    [
        {"origin": "http://localhost:8080"},
        {"origin": "https://localhost:8080"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-origin", "origin": "http://LOCALHOST:8080"},
    ],
)
def test_a_page_of_ours_may_ask_for_a_change(fields: dict[str, str]) -> None:
    assert origin_problem({"host": "localhost:8080", **fields}) == ""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        *(
            {"origin": each}
            for each in ("null", "", "http://evil.example", "http://localhost:8081", "http://localhost")
        ),
        *({"origin": each} for each in ("file://localhost:8080", "http://localhost:8080.evil.example")),
        *({"sec-fetch-site": each} for each in ("cross-site", "same-site", "none", "")),
        {"sec-fetch-site": "cross-site", "origin": "http://localhost:8080"},
        {"sec-fetch-site": "same-origin", "origin": "http://evil.example"},
    ],
)
def test_no_other_page_may(fields: dict[str, str]) -> None:
    assert origin_problem({"host": "localhost:8080", **fields})


@pytest.mark.parametrize(
    ("sent", "known", "same"), [("a", "a", True), ("a", "b", False), ("", "", False), ("ä", "a", False)]
)
def test_secrets(sent: str, known: str, same: bool) -> None:
    assert is_same_secret(sent, known) is same


def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert "unsafe" not in CONTENT_POLICY
    assert "*" not in CONTENT_POLICY
    assert "frame-ancestors 'none'" in CONTENT_POLICY
