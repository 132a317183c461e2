"""The page for operators: where it is, who may read it without a token, and who may do everything."""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from bentpipe.config.base import ListenAddress, Name, Section

SOCKET_NAME = "admin.sock"
SOCKET_PATH_BYTES = 107
"""unix(7): sun_path has room for 108, the last of them zero."""
HOST_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
"""A name as a browser writes it into the field Host, in lower case."""
HostName = Annotated[str, Field(pattern=HOST_PATTERN)]


class AdminSection(Section):
    """The page for operators. Without this section there is none."""

    path: Path | None = None
    """The Unix socket that serves it, for root and the daemon's own user, who need no token. By default `admin.sock` in
    systemd's RuntimeDirectory, unless there is an address."""
    address: ListenAddress | None = None
    """A loopback address that serves it too. Every user of this host can connect to it, so it asks for a token."""
    hosts: tuple[HostName, ...] = ()
    """Names by which browsers reach it through a proxy of yours, beside localhost. A request for any other name is refused:
    else a page of a stranger could read it by a name that leads here (DNS rebinding)."""
    operators: tuple[Name, ...] = ()
    """Names of tokens that may see and do everything here. All other tokens may see and do what their grants say."""
    read_without_token: bool = False
    """Whether everybody who can connect to `address` may read everything, as with [metrics]. Nobody may act without a
    token."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and len(os.fsencode(self.path)) > SOCKET_PATH_BYTES:
            raise ValueError(f"path has over {SOCKET_PATH_BYTES} bytes, too many for a socket")
        if self.address is not None and not _is_loopback(self.address[0]):
            raise ValueError(
                f"address {self.address[0] or '(all)'} is not a loopback address, and tokens would cross the network in the "
                "clear: give 127.0.0.1 or ::1, and reach it by `ssh -L`, or by a proxy of yours with TLS (then give hosts)"
            )
        if self.read_without_token and self.address is None:
            raise ValueError("read_without_token is for an address: who may open the socket at path may do everything")
        return self

    def socket_path(self, environment: Mapping[str, str] = os.environ) -> Path | None:
        """The socket's path; None if there is no socket."""
        if self.path is not None or self.address is not None:
            return self.path
        # systemd.exec(5): a list of folders, ours has one.
        directory = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        return Path(directory) / SOCKET_NAME if directory else None


def _is_loopback(host: str) -> bool:
    return bool(host) and ipaddress.ip_address(host).is_loopback
