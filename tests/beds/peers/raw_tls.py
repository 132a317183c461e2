"""A TLS peer that writes its own records: key updates, empty and padded ones, warnings, fragments, as many as one likes.

Python's ssl shakes hands; then the keys are taken from its key log and its side of the stream is ours alone. TLS 1.3 and
1.2 with the AES-GCM and ChaCha20 suites (RFC 8446 §5.2, §7.3; RFC 5246 §5, RFC 5288). What the other side says is read by
ssl for as long as that makes sense to it.
"""

import dataclasses
import hashlib
import hmac
import socket
import ssl
import tempfile

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
HELLO_REQUEST, CLIENT_HELLO, NEW_SESSION_TICKET, KEY_UPDATE = 0, 1, 4, 24
WARNING = 1
USER_CANCELED, NO_RENEGOTIATION = 90, 100
READ_BYTES = 1 << 16
HEADER_BYTES = 5
TICKET = b"\0\0\0\x0a" + b"\0\0\0\0" + b"\x01n" + b"\0\x01t" + b"\0\0"
"""A NewSessionTicket of ten seconds, about as small as can be (RFC 8446 §4.6.1)."""


@dataclasses.dataclass
class Suite:
    hash: str
    key_bytes: int
    chacha: bool = False


SUITES = {
    "TLS_AES_256_GCM_SHA384": Suite("sha384", 32),
    "TLS_AES_128_GCM_SHA256": Suite("sha256", 16),
    "TLS_CHACHA20_POLY1305_SHA256": Suite("sha256", 32, chacha=True),
    "ECDHE-RSA-AES256-GCM-SHA384": Suite("sha384", 32),
    "ECDHE-ECDSA-AES256-GCM-SHA384": Suite("sha384", 32),
    "ECDHE-RSA-AES128-GCM-SHA256": Suite("sha256", 16),
    "ECDHE-ECDSA-AES128-GCM-SHA256": Suite("sha256", 16),
}


def expand_label(suite: Suite, secret: bytes, label: str, size: int) -> bytes:
    """RFC 8446 §7.1."""
    full = b"tls13 " + label.encode()
    info = size.to_bytes(2) + bytes((len(full),)) + full + b"\0"
    algorithm = hashes.SHA384() if suite.hash == "sha384" else hashes.SHA256()
    return HKDFExpand(algorithm=algorithm, length=size, info=info).derive(secret)


def prf(suite: Suite, secret: bytes, label: bytes, seed: bytes, size: int) -> bytes:
    """RFC 5246 §5."""

    def mac(data: bytes) -> bytes:
        return hmac.new(secret, data, suite.hash).digest()

    seed = label + seed
    at, out = seed, b""
    while len(out) < size:
        at = mac(at)
        out += mac(at + seed)
    return out[:size]


def message(kind: int, body: bytes = b"") -> bytes:
    """A handshake message."""
    return bytes((kind,)) + len(body).to_bytes(3) + body


class RawTls:
    """One connection, hands shaken; takes the socket, which must block."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False, name: str = "localhost"
    ) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._received = b""
        with tempfile.NamedTemporaryFile() as log:
            context.keylog_filename = log.name
            self._ssl = context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=server_side,
                server_hostname=None if server_side else name,
            )
            sent = self._shake_hands()
            lines = log.read().decode().split("\n")
        self._key: ChaCha20Poly1305 | AESGCM
        self.version = self._ssl.version()
        cipher = self._ssl.cipher()
        assert cipher
        self.suite = SUITES[cipher[0]]
        secrets = {line.split(" ")[0]: bytes.fromhex(line.split(" ")[2]) for line in lines if line and line[0] != "#"}
        if self.version == "TLSv1.3":
            self._sequence = 0
            self._secret = secrets[f"{'SERVER' if server_side else 'CLIENT'}_TRAFFIC_SECRET_0"]
            self._use_secret()
        else:
            self._sequence = 1  # Finished was 0
            hellos = (sent, self._received) if not server_side else (self._received, sent)
            client, server = (hello[11:43] for hello in hellos)
            size = self.suite.key_bytes
            block = prf(self.suite, secrets["CLIENT_RANDOM"], b"key expansion", server + client, 2 * size + 8)
            ours = int(server_side)
            self._key = AESGCM(block[ours * size : (ours + 1) * size])
            self._iv = block[2 * size + 4 * ours : 2 * size + 4 * ours + 4]

    def _shake_hands(self) -> bytes:
        sent = b""
        while True:
            try:
                self._ssl.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            words = self._outgoing.read()
            sent += words
            self.sock.sendall(words)
            if done:
                return sent
            data = self.sock.recv(READ_BYTES)
            if not data:
                raise ConnectionError("it hung up in the handshake")
            self._received += data
            self._incoming.write(data)

    def _use_secret(self) -> None:
        key = expand_label(self.suite, self._secret, "key", self.suite.key_bytes)
        self._key = ChaCha20Poly1305(key) if self.suite.chacha else AESGCM(key)
        self._iv = expand_label(self.suite, self._secret, "iv", 12)

    def record(self, content: bytes, kind: int = DATA, padding: int = 0) -> bytes:
        """One record; of TLS 1.2 there is no padding."""
        number = self._sequence.to_bytes(8)
        self._sequence += 1
        if self.version == "TLSv1.3":
            inner = content + bytes((kind,)) + bytes(padding)
            header = bytes((DATA, 3, 3)) + (len(inner) + 16).to_bytes(2)
            nonce = (int.from_bytes(self._iv) ^ int.from_bytes(number)).to_bytes(12)
            return header + self._key.encrypt(nonce, inner, header)
        associated = number + bytes((kind, 3, 3)) + len(content).to_bytes(2)
        sealed = number + self._key.encrypt(self._iv + number, content, associated)
        return bytes((kind, 3, 3)) + len(sealed).to_bytes(2) + sealed

    def records(self, content: bytes, size: int = 16_384) -> bytes:
        """Application data in records of so many bytes."""
        return b"".join(self.record(content[at : at + size]) for at in range(0, len(content), size))

    def key_update(self, *, asks: bool = False) -> bytes:
        """KeyUpdate, and ours are the next keys (RFC 8446 §4.6.3)."""
        made = self.record(message(KEY_UPDATE, bytes((asks,))), HANDSHAKE)
        self._secret = expand_label(self.suite, self._secret, "traffic upd", hashlib.new(self.suite.hash).digest_size)
        self._sequence = 0
        self._use_secret()
        return made

    def alert(self, description: int, level: int = WARNING) -> bytes:
        """An alert."""
        return self.record(bytes((level, description)), ALERT)

    def read(self) -> bytes:
        """What the other side says next; b"" at the end, however it ends."""
        while True:
            try:
                return self._ssl.read(READ_BYTES)
            except ssl.SSLWantReadError:
                try:
                    data = self.sock.recv(READ_BYTES)
                except ConnectionError:
                    data = b""
                if not data:
                    return b""
                self._incoming.write(data)
            except ssl.SSLError:
                return b""

    def read_all(self) -> bytes:
        """What it says until it ends."""
        said = b""
        while data := self.read():
            said += data
        return said
