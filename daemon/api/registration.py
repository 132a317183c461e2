"""RegisterSatellite, SatelliteHeartbeat and DeregisterSatellite, by which a machine makes itself a satellite.

The scope `manage` says who may register a satellite. A heartbeat needs it too, beside the registration token: what a token
has registered goes offline once the token is revoked.
"""

from collections.abc import Callable

from cryptography.x509 import load_pem_x509_certificates

from bentpipe.daemon.accounts.contract import Access, Scope
from bentpipe.daemon.api.call import Call, Method, waiting
from bentpipe.daemon.api.compute import NOT_PERMITTED_IN_ORG, SERVICE_PATH
from bentpipe.daemon.api.finding import check_name
from bentpipe.daemon.errors import InvalidRequest, NotPermitted, NotServed
from bentpipe.daemon.fleet.registered_address import source_of
from bentpipe.daemon.fleet.registrar import Registrar, Wish
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto import compute_pb2 as pb

PLATFORMS = ("linux/amd64", "linux/arm64")
TEXT_CHARS = 64
"""Of a version."""
CA_BYTES = 16 << 10
"""An authority's certificate is 1 or 2 KiB, and a chain has a few."""
TOKEN_CHARS = 128
NOT_SERVED = "this daemon registers no satellites: its operator allows it by [registration] networks"
NO_KEYS = "certificate.client_ca and client_ca_key must be empty: the daemon takes nobody's private keys"


class Registration:
    """The methods. Without a `registrar` no satellite registers."""

    def __init__(self, registrar: Registrar | None) -> None:
        self._registrar = registrar

    @property
    def methods(self) -> dict[str, Method]:
        """All of them, by path."""
        return {
            SERVICE_PATH + "RegisterSatellite": waiting(pb.RegisterSatelliteRequest, self._register),
            SERVICE_PATH + "SatelliteHeartbeat": waiting(pb.SatelliteHeartbeatRequest, self._heartbeat),
            SERVICE_PATH + "DeregisterSatellite": waiting(pb.DeregisterSatelliteRequest, self._deregister),
        }

    async def _register(self, call: Call, request: pb.RegisterSatelliteRequest) -> pb.RegisterSatelliteResponse:
        key = SatelliteKey(check_name(request.org_id, "org_id"), check_name(request.satellite_name, "satellite_name"))
        if not call.access.may(Scope.MANAGE, key.org, key.name):
            raise NotPermitted(NOT_PERMITTED_IN_ORG)
        registrar = self._served()
        if request.platform not in PLATFORMS:
            raise InvalidRequest(f"platform is not valid: expected {' or '.join(PLATFORMS)}")
        wish = Wish(
            key,
            host=_text(request.satellite_host, "satellite_host"),
            port=request.satellite_port,
            platform=request.platform,
            version=_text(request.version, "version"),
            root_ca=_authority(request.certificate),
            token=_token(request.registration_token),
        )
        token = await registrar.register(wish, call.access.name, source_of(call.source))
        return pb.RegisterSatelliteResponse(registration_token=token)

    async def _heartbeat(self, call: Call, request: pb.SatelliteHeartbeatRequest) -> pb.SatelliteHeartbeatResponse:
        token, source = _needed(request.registration_token), source_of(call.source)
        await self._served().heartbeat(token, _manages(call.access), source)
        return pb.SatelliteHeartbeatResponse()

    async def _deregister(self, call: Call, request: pb.DeregisterSatelliteRequest) -> pb.DeregisterSatelliteResponse:
        await self._served().deregister(_needed(request.registration_token), _manages(call.access))
        return pb.DeregisterSatelliteResponse()

    def _served(self) -> Registrar:
        if self._registrar is None:
            raise NotServed(NOT_SERVED)
        return self._registrar


def _manages(access: Access) -> Callable[[SatelliteKey], bool]:
    return lambda key: access.may(Scope.MANAGE, key.org, key.name)


def _needed(token: str) -> str:
    if not token:
        raise InvalidRequest("registration_token is missing: RegisterSatellite gives it")
    return _token(token)


def _token(token: str) -> str:
    if len(token) > TOKEN_CHARS:
        raise InvalidRequest(f"registration_token is malformed: over {TOKEN_CHARS} characters")
    return token


def _text(value: str, field: str) -> str:
    if len(value) > TEXT_CHARS or not value.isprintable():
        raise InvalidRequest(f"{field} is malformed: printable characters, {TEXT_CHARS} at most")
    return value


def _authority(certificate: pb.TLSCertificate) -> str:
    """The authority of the satellite's certificate, in PEM; empty if there is none. Raises InvalidRequest."""
    if certificate.client_ca or certificate.client_ca_key:
        raise InvalidRequest(NO_KEYS)
    if not certificate.root_ca:
        return ""
    if len(certificate.root_ca) > CA_BYTES:
        raise InvalidRequest(f"certificate.root_ca is too long: over {CA_BYTES} bytes")
    try:
        load_pem_x509_certificates(certificate.root_ca)
        return certificate.root_ca.decode("ascii")
    except ValueError as exc:
        raise InvalidRequest("certificate.root_ca is not valid: expected certificates in PEM") from exc
