"""TLS by OpenSSL on the socket itself (never a memory BIO), so that the engine's threads can take a connection over.

Nothing here blocks: an operation that has to wait raises WantRead or WantWrite. Call it again when the socket is ready, a
write with the same bytes first (SSL_write(3)). One thread at a time may use a connection.
"""

import os
from pathlib import Path

from bentpipe.native.lib import Pointer, check, ffi, lib

ERROR_BYTES = 512
NAME_BYTES = 256
"""A DNS name has at most 253 characters (RFC 1035), an ALPN name at most 255 bytes (RFC 7301)."""
CERTIFICATE_BYTES = 64 << 10
"""A larger certificate counts as none."""
READ_BYTES = 64 << 10
"""Most that one read returns."""

WANT_READ, WANT_WRITE, TRUNCATED, FAILED = -1001, -1002, -1003, -1004
"""enum bp_tls_result in include/bp.h."""


CONTROL_FLOOD, HANDSHAKE_FLOOD = -1005, -1006
LIMITS = {CONTROL_FLOOD: "TLS_CONTROL_RECORDS", HANDSHAKE_FLOOD: "TLS_HANDSHAKE_RECORDS"}
"""Results that mean a limit of src/tls_meter.c was passed, and the limit's name."""


class WantRead(Exception):
    """The operation waits for the socket to be readable."""


OTHER_KEY = "key values mismatch"
"""OpenSSL's reason X509_R_KEY_VALUES_MISMATCH (X509_check_private_key(3))."""


class WantWrite(Exception):
    """The operation waits for the socket to be writable."""


class TlsError(Exception):
    """OpenSSL refused; `str()` has its message."""


class TlsTruncated(TlsError):
    """The connection ended without close_notify (RFC 8446 §6.1)."""


class TlsFlood(TlsError):
    """The peer sent too many records that carry no data; `limit` names the limit. Writing to it is still possible."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


def failure_of(result: int, message: str) -> TlsError | OSError:
    """What a result of C below 0 means, if it does not ask for a wait. `message` is what `bp_tls_error` says."""
    if result == TRUNCATED:
        return TlsTruncated(message)
    if result in LIMITS:
        return TlsFlood(message, LIMITS[result])
    if result == FAILED:
        return TlsError(message)
    return OSError(-result, os.strerror(-result))


class _Context:
    _pointer: Pointer = ffi.NULL

    def _adopt(self, pointer: Pointer, error: Pointer) -> None:
        if pointer == ffi.NULL:
            raise TlsError(ffi.string(error).decode(errors="replace"))
        self._pointer = pointer

    @property
    def pointer(self) -> Pointer:
        """The bp_tls_ctx, owned by this object."""
        return self._pointer

    def enable_ktls(self) -> None:
        """Let the kernel encrypt and decrypt for new connections if it, OpenSSL and the cipher can."""
        lib.bp_tls_ctx_enable_ktls(self._pointer)

    def __del__(self) -> None:
        if self._pointer != ffi.NULL:
            lib.bp_tls_ctx_free(self._pointer)


class TlsServerContext(_Context):
    """A server's identity: TLS 1.3, or 1.2 with ECDHE and AEAD; ALPN h2, no tickets.

    Raises TlsError, which names the file."""

    def __init__(self, certificate: Path, key: Path, *, client_ca: Path | None = None) -> None:
        error = ffi.new("char[]", ERROR_BYTES)
        authorities = ffi.NULL if client_ca is None else os.fsencode(client_ca)
        files = os.fsencode(certificate), os.fsencode(key)
        authorities = authorities if client_ca is None else ffi.new("char[]", authorities)
        try:
            self._adopt(lib.bp_tls_ctx_server(*files, authorities, error, ERROR_BYTES), error)
        except TlsError as exc:
            if OTHER_KEY in str(exc):
                raise TlsError(f"{key} is not the key of {certificate}: give the two that were made together") from exc
            raise

    def add_crls(self, crls: Path) -> None:
        """Refuse clients whose certificates are revoked, and all whose CRL is missing or past its nextUpdate.

        Raises TlsError, which names the file.
        """
        error = ffi.new("char[]", ERROR_BYTES)
        if lib.bp_tls_ctx_add_crls(self._pointer, os.fsencode(crls), error, ERROR_BYTES) < 0:
            raise TlsError(ffi.string(error).decode(errors="replace"))

    def add(self, other: "TlsServerContext") -> None:
        """Show `other`'s certificate to clients that ask for one of its names (SNI). Raises OSError."""
        check(lib.bp_tls_ctx_add(self._pointer, other.pointer))


class TlsClientContext(_Context):
    """The authorities that a client trusts (`ca`), and its own certificate. Raises TlsError, which names the file."""

    def __init__(self, *, ca: Path, certificate: Path | None = None, key: Path | None = None) -> None:
        error = ffi.new("char[]", ERROR_BYTES)
        shown = [ffi.NULL if path is None else ffi.new("char[]", os.fsencode(path)) for path in (certificate, key)]
        self._adopt(lib.bp_tls_ctx_client(os.fsencode(ca), shown[0], shown[1], error, ERROR_BYTES), error)


class TlsConnection:
    """One TLS connection on a connected non-blocking socket, which it borrows."""

    def __init__(
        self, context: TlsServerContext | TlsClientContext, fd: int, *, server_name: str | None = None
    ) -> None:
        error = ffi.new("char[]", ERROR_BYTES)
        name = ffi.NULL if server_name is None else ffi.new("char[]", server_name.encode("idna"))
        self._pointer = lib.bp_tls_new(context.pointer, fd, name, error, ERROR_BYTES)
        if self._pointer == ffi.NULL:
            raise TlsError(ffi.string(error).decode(errors="replace"))

    @classmethod
    def of(cls, pointer: Pointer) -> "TlsConnection":
        """The object for a bp_tls, which it takes."""
        made = cls.__new__(cls)
        made._pointer = pointer
        return made

    def _live(self) -> Pointer:
        if self._pointer == ffi.NULL:
            raise TlsError("the TLS connection is closed or was handed over")
        return self._pointer

    def _check(self, result: int) -> int:
        if result >= 0:
            return result
        if result == WANT_READ:
            raise WantRead
        if result == WANT_WRITE:
            raise WantWrite
        raise self.failure(result)

    def failure(self, result: int) -> TlsError | OSError:
        """What a result of C below 0 means, if it does not ask for a wait."""
        return failure_of(result, ffi.string(lib.bp_tls_error(self._pointer)).decode(errors="replace"))

    def do_handshake(self) -> None:
        """Go on with the handshake, for a bounded time. Raises WantRead, WantWrite, TlsError, OSError."""
        self._check(lib.bp_tls_handshake(self._live()))

    def read(self, max_bytes: int) -> bytes:
        """Read up to `max_bytes` of the records that are there; b"" after close_notify.

        The time of a call is bounded, so the socket may still be readable after WantRead. Raises WantRead, WantWrite,
        TlsTruncated, TlsFlood, TlsError, OSError.
        """
        size = min(max_bytes, READ_BYTES)
        buffer = ffi.new("char[]", size)
        return bytes(ffi.buffer(buffer, size)[: self._check(lib.bp_tls_read(self._live(), buffer, size))])

    def write(self, data: bytes | memoryview) -> int:
        """Write some of `data` and return how much. Raises WantRead, WantWrite, TlsError, OSError."""
        return self._check(lib.bp_tls_write(self._live(), ffi.from_buffer(data), len(data)))

    def shutdown(self) -> None:
        """Send close_notify. Raises WantWrite while closing the socket would lose bytes, TlsError, OSError."""
        self._check(lib.bp_tls_shutdown(self._live()))

    def close(self) -> None:
        """Free it; the socket stays open. Idempotent."""
        lib.bp_tls_free(self.release())

    def release(self) -> Pointer:
        """Hand the bp_tls to the caller (NULL if it is gone already); this object is closed then. For the engine."""
        pointer, self._pointer = self._pointer, ffi.NULL
        return pointer

    def __del__(self) -> None:
        if getattr(self, "_pointer", ffi.NULL) != ffi.NULL:
            self.close()

    @property
    def pointer(self) -> Pointer:
        """The bp_tls, still owned by this object."""
        return self._live()

    @property
    def alpn(self) -> str | None:
        """The protocol agreed on, if any (RFC 7301)."""
        text = ffi.new("char[]", NAME_BYTES)
        return ffi.string(text).decode() if lib.bp_tls_alpn(self._live(), text, NAME_BYTES) else None

    @property
    def server_name(self) -> str | None:
        """The server name that the client sent, if any (SNI, RFC 6066 §3)."""
        text = ffi.new("char[]", NAME_BYTES)
        found = lib.bp_tls_server_name(self._live(), text, NAME_BYTES)
        return ffi.string(text).decode(errors="replace") if found else None

    @property
    def version(self) -> str:
        """For example "TLSv1.3"."""
        return ffi.string(lib.bp_tls_version(self._live())).decode()

    @property
    def cipher(self) -> str:
        """The cipher suite's name."""
        return ffi.string(lib.bp_tls_cipher(self._live())).decode()

    @property
    def ktls(self) -> int:
        """Which directions the kernel does: 1 send, 2 receive (enum bp_ktls)."""
        return lib.bp_tls_ktls(self._live())

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's certificate, if it sent one."""
        der = ffi.new("char[]", CERTIFICATE_BYTES)
        size = lib.bp_tls_peer_certificate(self._live(), der, CERTIFICATE_BYTES)
        return bytes(ffi.buffer(der, size)) if 0 < size <= CERTIFICATE_BYTES else None


def openssl_version() -> str:
    """The version of OpenSSL that the engine uses."""
    return ffi.string(lib.bp_openssl_version()).decode()
