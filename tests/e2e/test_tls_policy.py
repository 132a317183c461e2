"""What every certificate of a listener has in common, which cipher suites there are, and that alerts arrive."""

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from beds.hosts.in_process import PREFACE
from beds.hosts.served import SECTIONS, Served
from beds.http2 import EMPTY_SETTINGS

DEADLINE_S = 10.0
HANDSHAKES = 200
UNREAD = b"x" * 20_000
"""Behind the handshake: the port was closed over it, and the RST took the alert with it."""
OPEN, MUTUAL = 0, 1
"""Indices of the ports."""


class Bed:
    """A daemon with two TLS ports, each with a second certificate of another kind of key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority, self.clients, self.strangers = trustme.CA(), trustme.CA(), trustme.CA()
        self._issue("first", trustme.KeyType.RSA)
        self._issue("second", trustme.KeyType.ECDSA)
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.clients.cert_pem.write_to_path(folder / "clients.pem")
        tls = "".join(
            f"[[listener]]\naddress = '127.0.0.1:0'\n[listener.tls]\n{self._pair('first')}{more}"
            f"[[listener.tls.more]]\n{self._pair('second')}"
            for more in ("", f"client_ca = {json.dumps(str(folder / 'clients.pem'))}\n")
        )
        self.config = folder / "bentpipe.toml"
        self.config.write_text(f"{SECTIONS}{tls}")

    def _issue(self, name: str, kind: trustme.KeyType) -> None:
        issued = self.authority.issue_cert(f"{name}.example", key_type=kind)
        (self.folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.folder / f"{name}.key")

    def _pair(self, name: str) -> str:
        return "".join(
            f"{key} = {json.dumps(str(self.folder / file))}\n"
            for key, file in (("certificate", f"{name}.pem"), ("key", f"{name}.key"))
        )

    def context(self, of: trustme.CA | None = None) -> ssl.SSLContext:
        """A client's; with a certificate of `of`."""
        made = ssl.create_default_context()
        made.set_alpn_protocols(["h2"])
        self.authority.configure_trust(made)
        if of is not None:
            of.issue_cert("dev@example.com").configure_cert(made)
        return made


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def served(bed: Bed) -> Iterator[Served]:
    with Served(bed.config) as daemon:
        yield daemon


def settings_of(port: int, context: ssl.SSLContext, name: str) -> bytes:
    """The daemon's first frame to a client that asks for `name`. Raises ssl.SSLError."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as sock,
        context.wrap_socket(sock, server_hostname=name) as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"
        tls.sendall(PREFACE + EMPTY_SETTINGS)
        return tls.recv(9)


names = pytest.mark.parametrize("name", ["first.example", "second.example"])
versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@names
@versions
def test_every_certificate_asks_for_the_clients(bed: Bed, served: Served, name: str, version: ssl.TLSVersion) -> None:
    def context(of: trustme.CA | None) -> ssl.SSLContext:
        made = bed.context(of)
        made.minimum_version = made.maximum_version = version
        return made

    assert settings_of(served.ports[MUTUAL], context(bed.clients), name)[3] == 4
    assert settings_of(served.ports[OPEN], context(None), name)[3] == 4
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown ca"):
        settings_of(served.ports[MUTUAL], context(bed.strangers), name)
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate required|handshake failure"):
        settings_of(served.ports[MUTUAL], context(None), name)


def suites() -> list[str]:
    """All that this OpenSSL has for TLS 1.2, and nobody should."""
    done = subprocess.run(
        ["openssl", "ciphers", "-s", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [suite for suite in done.stdout.strip().split(":") if not suite.startswith("TLS_")]


def chosen_suite(served: Served, name: str, *offer: str) -> str:
    """The suite that a client gets which makes the offer; "(NONE)" if the handshake fails."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{served.ports[OPEN]}", "-servername", name, *offer],
        input="",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    found = re.search(r"Cipher is (\S+)", done.stdout)
    assert found is not None, done.stderr
    return found[1]


AES_128, AES_256, CHACHA = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"
HAS_AES = " aes " in Path("/proc/cpuinfo").read_text().replace("\n", " ")


@pytest.mark.skipif(not HAS_AES, reason="this CPU has no instructions for AES, so the client's order decides")
@pytest.mark.parametrize(
    ("offer", "suite"),
    [
        ((AES_256, CHACHA, AES_128), AES_128),
        ((AES_128, AES_256), AES_128),
        ((AES_256,), AES_256),
        ((AES_256, CHACHA), AES_256),
        ((CHACHA, AES_128, AES_256), CHACHA),
        ((CHACHA,), CHACHA),
    ],
)
@names
def test_the_cheapest_suite_that_both_do_in_hardware(
    served: Served, name: str, offer: tuple[str, ...], suite: str
) -> None:
    """A client that puts ChaCha20 first has no instructions for AES (RFC 7539 was made for those)."""
    assert chosen_suite(served, name, "-tls1_3", "-ciphersuites", ":".join(offer)) == suite
    kind = "RSA" if name == "first.example" else "ECDSA"
    older = {AES_128: "AES128-GCM-SHA256", AES_256: "AES256-GCM-SHA384", CHACHA: "CHACHA20-POLY1305"}
    names_1_2 = [f"ECDHE-{kind}-{older[each]}" for each in offer]
    assert chosen_suite(served, name, "-tls1_2", "-cipher", ":".join(names_1_2)) == f"ECDHE-{kind}-{older[suite]}"


@names
def test_suites_of_tls_1_2_are_those_that_http2_may_use(served: Served, name: str) -> None:
    taken = set()
    for suite in suites():
        if chosen_suite(served, name, "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0") == suite:
            taken.add(suite)
    kind = "RSA" if name == "first.example" else "ECDSA"
    assert taken == {
        f"ECDHE-{kind}-{cipher}" for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    }


def test_the_alert_reaches_a_client_with_a_wrong_certificate(bed: Bed, served: Served) -> None:
    context, seen = bed.context(bed.strangers), 0
    for _ in range(HANDSHAKES):
        with (
            socket.create_connection(("127.0.0.1", served.ports[MUTUAL]), timeout=DEADLINE_S) as sock,
            context.wrap_socket(sock, server_hostname="first.example") as tls,
        ):
            # In TLS 1.3 the client has done its part, and speaks at once.
            try:
                tls.sendall(PREFACE + EMPTY_SETTINGS + UNREAD)
                tls.recv(1)
            except ssl.SSLError as exc:
                seen += "UNKNOWN_CA" in str(exc)
            except ConnectionError:
                pass
    assert seen == HANDSHAKES
