"""Asks the page for operators as a browser would, over TCP or its Unix socket, without a browser."""

import dataclasses
import http.client
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

DEADLINE_S = 30.0
SECRET = re.compile(r'name="secret" value="([^"]+)"')


@dataclasses.dataclass(frozen=True)
class PageAnswer:
    """An answer; fields' names are in lower case."""

    status: int
    fields: Mapping[str, str]
    text: str


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(self._path))


class PageClient:
    """One browser: it keeps its cookie, and follows no redirect. `at` is (host, port), or the socket's path. Blocks."""

    def __init__(self, at: tuple[str, int] | Path) -> None:
        self._at = at
        self.cookie = ""

    @property
    def host(self) -> str:
        """What the field Host has."""
        return "localhost" if isinstance(self._at, Path) else f"{self._at[0]}:{self._at[1]}"

    def ask(
        self, method: str, path: str, form: Mapping[str, str] | None = None, fields: Mapping[str, str] | None = None
    ) -> PageAnswer:
        """One request on a connection of its own. `fields` are added, or replace what is sent by default."""
        made = _UnixConnection(self._at) if isinstance(self._at, Path) else http.client.HTTPConnection(*self._at)
        sent = {"Host": self.host, **({"Cookie": self.cookie} if self.cookie else {})}
        body = None
        if form is not None:
            body = urlencode(form)
            sent |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://{self.host}"}
        sent |= fields or {}
        try:
            made.request(method, path, body, sent)
            answer = made.getresponse()
            text = answer.read().decode()
        finally:
            made.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].partition(";")[0]
        return PageAnswer(answer.status, found, text)

    def get(self, path: str, **fields: str) -> PageAnswer:
        """A page."""
        return self.ask("GET", path, fields=fields)

    def post(self, path: str, **form: str) -> PageAnswer:
        """A form."""
        return self.ask("POST", path, form)

    def sign_in(self, token: str) -> PageAnswer:
        """Show a token."""
        return self.post("/sign-in", token=token)

    def secret(self, path: str = "/") -> str:
        """That of the forms of a page."""
        found = SECRET.search(self.get(path).text)
        assert found is not None, f"{path} has no form"
        return found[1]
