"""Answers gRPC: grpc.health.v1 (Check and Watch), and GetStatus of proto/responder.proto. It reads looks and never waits."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Callable

from bentpipe.daemon.responder.hpack import Headers
from bentpipe.daemon.responder.http2 import MAX_BODY_BYTES, Answer
from bentpipe.daemon.responder.looks import milliseconds, uptime_s
from bentpipe.daemon.responder.machine import read_text
from bentpipe.daemon.responder.wire import PREFIX_BYTES, Fields, WireError, decode_fields, encode_fields, grpc_message

VERSION = "source"
"""Of bentpipe; `bundle.py` sets it."""
CHECK = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"
STATUS = b"/bentpipe.responder.v1.Responder/GetStatus"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
"""HealthCheckResponse.ServingStatus."""
OK, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED = b"0", b"3", b"5", b"8", b"12"
"""Codes of gRPC."""
BUILDKIT_SILENT_S = 30.0
"""If buildkitd has not answered for so long, the service "buildkit" does not serve. A busy one answers late."""
CONTENT_TYPE = (b"content-type", b"application/grpc")


class ResponderService:
    """The answers. `sections` say the sections of Status, by their field numbers; `buildkit_age_s` how old its look is."""

    def __init__(
        self,
        root: str,
        sections: Mapping[int, Callable[[float], bytes]],
        buildkit_age_s: Callable[[float], float | None],
    ) -> None:
        self._boot_id = read_text(os.path.join(root, "proc/sys/kernel/random/boot_id")).strip()
        self._sections = sections
        self._buildkit_age_s = buildkit_age_s
        self._started_s = uptime_s()
        self.memory_locked = False
        self.slow_turns = 0

    def respond(self, headers: Headers, body: bytes) -> Answer:
        """Answer one request."""
        given = dict(headers)
        if given[b":method"] != b"POST":
            return _refuse_http(b"405", b"a call of gRPC is a POST\n")
        if not given.get(b"content-type", b"").startswith(b"application/grpc"):
            return _refuse_http(b"415", b"a call of gRPC has the content type application/grpc\n")
        path = given[b":path"]
        if path not in (CHECK, WATCH, STATUS):
            return _end(UNIMPLEMENTED, "the responder has no such method")
        if len(body) > MAX_BODY_BYTES:
            return _end(RESOURCE_EXHAUSTED, "the request is too large")
        if len(body) < PREFIX_BYTES or len(body) - PREFIX_BYTES != struct.unpack_from(">I", body, 1)[0]:
            return _end(INVALID_ARGUMENT, "the request must be exactly one message")
        if body[0]:
            return _end(UNIMPLEMENTED, "the request is compressed")
        if path == STATUS:
            return _message(self.status())
        return self._health(path, body[PREFIX_BYTES:])

    def status(self) -> bytes:
        """Encode Status."""
        now = uptime_s()
        fields: Fields = [
            (1, VERSION),
            (2, self._boot_id),
            (3, milliseconds(now)),
            (4, milliseconds(self._started_s)),
            (5, os.sysconf("SC_NPROCESSORS_ONLN")),
            (6, self.memory_locked),
            (7, self.slow_turns),
        ]
        return encode_fields([*fields, *((number, section(now)) for number, section in self._sections.items())])

    def _health(self, path: bytes, message: bytes) -> Answer:
        try:
            service = dict(decode_fields(message)).get(1, b"")
        except WireError as exc:
            return _end(INVALID_ARGUMENT, str(exc))
        status = self._serving(service)
        if path == WATCH:
            return Answer(
                self._headers(), _serving_message(status), None, lambda: _serving_message(self._serving(service))
            )
        if status == SERVICE_UNKNOWN:
            return _end(NOT_FOUND, 'the services are "" and "buildkit"')
        return Answer(self._headers(), _serving_message(status), [(b"grpc-status", OK)])

    def _headers(self) -> Headers:
        """With the values that `daemon/edge/questions.py` reads."""
        uptime = b"%.3f" % uptime_s()
        return [*_headers(), (b"bentpipe-boot-id", self._boot_id.encode()), (b"bentpipe-uptime-s", uptime)]

    def _serving(self, service: object) -> int:
        if service == b"":
            return SERVING
        if service != b"buildkit":
            return SERVICE_UNKNOWN
        age_s = self._buildkit_age_s(uptime_s())
        return SERVING if age_s is not None and age_s < BUILDKIT_SILENT_S else NOT_SERVING


def _headers(status: bytes = b"200") -> Headers:
    return [(b":status", status), CONTENT_TYPE]


def _serving_message(status: int) -> bytes:
    return grpc_message(encode_fields([(1, status)]))


def _message(data: bytes) -> Answer:
    return Answer(_headers(), grpc_message(data), [(b"grpc-status", OK)])


def _end(status: bytes, text: str) -> Answer:
    """End a call without a message. `text` is ASCII without percent signs, and so needs no encoding."""
    return Answer(_headers(), b"", [(b"grpc-status", status), (b"grpc-message", text.encode())])


def _refuse_http(status: bytes, text: bytes) -> Answer:
    return Answer([(b":status", status), (b"content-type", b"text/plain")], text, [])
