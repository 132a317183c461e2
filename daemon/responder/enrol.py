"""Gets the machine's certificate from the daemon, and the next one in time. A program of its own, beside the responder.

    python3 -I -S enrol.py ENROLMENT.json FOLDER [--restart UNIT --port PORT --builds CGROUP] [--metadata URL]

ENROLMENT.json is from the machine's user data: `address`, `satellite`, `launch`, `token` and `trusted`. A machine of the
reserve has booted without it. Such a machine belongs to nobody, and asks EC2's metadata service until the daemon has given
it other user data, which it does before it wakes the machine for a satellite. FOLDER then has

- `identity.pem`: the private key and the certificate with its chain. They are one file, so that a reader never gets the one
  without the other; BuildKit and the responder take it as certificate and as key;
- `ca.pem`: whom the machine trusts.

The key is made here and never leaves the machine. What was asked for is kept until it is answered, so that a request whose
answer was lost, or after which the machine lost power, is made again as it was. buildkitd reads its certificate only when it
starts. So after a renewal UNIT is restarted, once no build runs and no client is connected.

It must never end by itself: without it the machine is lost to the daemon when its certificate ends.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence

DAEMON_NAME = "daemon.bentpipe.internal"
"""In the daemon's certificates, whatever its address. It is outside the domain of machines, so that no machine has it."""
REQUEST_S = 10.0
TICK_S = 5.0
"""Between looks at the wall clock. A machine that wakes after weeks may find its certificate ended. A timer that counts the
time awake would not tell."""
PAUSE_FIRST_S, PAUSE_MOST_S, PAUSE_DENIED_S = 0.1, 30.0, 60.0
"""After a failure, doubling. After a denial nothing helps but what people do."""
EAGER_S, PAUSE_EAGER_S = 120.0, 0.5
"""After its start the program tries more often: builds wait while the network comes up, and cloud-init writes its file."""
METADATA = "http://169.254.169.254"
"""EC2's instance metadata service. Its answers come from outside the machine, so that they are new after a resume."""
METADATA_S, METADATA_LIFE_S = 2.0, 60
PAUSE_UNASSIGNED_S = 0.5
"""Between looks for the enrolment. After a resume a client waits for the next one."""
ASSIGNED_PREFIX = b"#cloud-config\n{"
"""Of user data with an enrolment for a machine that has booted before: what follows the first line is JSON."""
RESTART_S = 60
MAX_ANSWER_BYTES = 256 << 10
MAX_FILE_BYTES = 64 << 10
OPENSSL_S = 30
REQUEST_CONFIGURATION = "[req]\ndistinguished_name = name\n[name]\n"
"""For `openssl req`: the system's configuration may ask for extensions, which the daemon refuses."""
NOT_RUNNING = ("inactive", "failed", "unknown")
"""Answers of `systemctl is-active`."""
ESTABLISHED = "01"
"""In /proc/net/tcp (Documentation/networking/proc_net_tcp.rst)."""
NOTICE, WARNING = 5, 4
"""As systemd reads them (sd-daemon(3))."""


class EnrolmentError(Exception):
    """This attempt has failed; the next one may succeed."""


class DeniedError(EnrolmentError):
    """The daemon gives this machine no certificate."""


def say(level: int, words: str) -> None:
    """Write a line for the journal."""
    sys.stderr.write(f"<{level}>{words}\n")
    sys.stderr.flush()


class Identity:
    """The folder of the machine's certificate."""

    def __init__(self, enrolment: str, folder: str) -> None:
        self._enrolment = enrolment
        self._folder = folder
        self.file = os.path.join(folder, "identity.pem")
        self._trusted = os.path.join(folder, "ca.pem")
        self._next_key = os.path.join(folder, "next-key.pem")
        self._renewal = os.path.join(folder, "renewal.json")
        openssl = shutil.which("openssl", path=os.environ.get("PATH", os.defpath) + ":/usr/bin:/usr/sbin:/bin")
        self._openssl = openssl or "openssl"

    def hold_alone(self) -> int:
        """Wait until no other such program works on the folder: two would ask for two keys. Returns the lock."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        lock = os.open(os.path.join(self._folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def is_due(self) -> bool:
        """Whether it is time for a certificate, by the wall clock."""
        if not os.path.exists(self.file):
            return True
        try:
            return time.time() >= float(json.loads(_read(self._renewal))["at"])
        except (EnrolmentError, ValueError, KeyError, TypeError):
            return True

    def is_of_use(self) -> bool:
        """Whether there is a certificate that has not ended: with another one BuildKit need not start."""
        try:
            self._run("x509", "-noout", "-checkend", "0", "-in", self.file)
        except EnrolmentError:
            return False
        return True

    def ask(self) -> bool:
        """Get the first certificate, or the next one. Returns whether it is a next one. Raises EnrolmentError."""
        given = _json(_read(self._enrolment))
        request = self._request()
        body = {"satellite": given.get("satellite"), "launch": given.get("launch"), "request": request}
        renews = os.path.exists(self.file)
        if renews:
            signature = self._run("dgst", "-sha256", "-sign", self.file, text=request.encode())
            body["signature"] = base64.b64encode(signature).decode()
            body["key"] = self._run("pkey", "-in", self.file, "-pubout").decode()
            answer = self._call(str(given.get("address")), "/v1/renew", body, _read(self._trusted).decode())
        else:
            body["token"] = given.get("token")
            answer = self._call(str(given.get("address")), "/v1/enrol", body, str(given.get("trusted")))
        self._take(answer)
        return renews

    def _request(self) -> str:
        """Make a key and a request for it. If there is a key that was asked for and not answered, that one again."""
        known = [path for path in (self.file, self._next_key) if os.path.exists(path)]
        if len(known) > 1 and _read(self.file).startswith(_read(self._next_key)):
            os.unlink(self._next_key)  # it was answered, and then the power was lost
        if not os.path.exists(self._next_key):
            fresh = self._next_key + ".new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            curve = ("-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:named_curve")
            _write(fresh, self._run("genpkey", "-algorithm", "EC", *curve))
            os.replace(fresh, self._next_key)
        configuration = os.path.join(self._folder, "request.cnf")
        _write(configuration, REQUEST_CONFIGURATION.encode())
        command = ("req", "-new", "-sha256", "-config", configuration, "-key", self._next_key, "-subj", "/CN=machine")
        return self._run(*command).decode()

    def _take(self, answer: dict[str, object]) -> None:
        """Check the answer, then keep it."""
        certificate, trusted, after_s = (answer.get(each) for each in ("certificate", "trusted", "renew_after_s"))
        if not isinstance(certificate, str) or not isinstance(trusted, str) or not isinstance(after_s, (int, float)):
            raise EnrolmentError("the daemon's answer lacks a part")
        fresh = self.file + ".new"
        _write(fresh, _read(self._next_key) + certificate.encode())
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(fresh)  # and compare the key
            context.load_verify_locations(cadata=trusted)
        except (ssl.SSLError, OSError, ValueError) as exc:
            raise EnrolmentError(f"the daemon's answer cannot be used: {exc}") from exc
        _replace(self._trusted, trusted.encode())
        os.replace(fresh, self.file)
        _replace(self._renewal, json.dumps({"at": time.time() + max(float(after_s), 1.0)}).encode())
        os.unlink(self._next_key)
        _sync(self._folder)

    def _call(self, address: str, path: str, body: dict[str, object], trusted: str) -> dict[str, object]:
        try:
            connection = _DaemonConnection(address, trusted)
            try:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read(MAX_ANSWER_BYTES)
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as exc:  # ssl.SSLError is an OSError
            raise EnrolmentError(f"{address}: {exc}") from exc
        if answer.status == http.client.OK:
            return _json(text)
        words = f"{address}: {answer.status} {text[:500].decode('utf-8', 'replace')}"
        raise (DeniedError if answer.status == http.client.FORBIDDEN else EnrolmentError)(words)

    def _run(self, *arguments: str, text: bytes = b"") -> bytes:
        try:
            done = subprocess.run(
                (self._openssl, *arguments), input=text, capture_output=True, timeout=OPENSSL_S, check=False
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise EnrolmentError(f"openssl {arguments[0]}: {exc}") from exc
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace").strip()
            raise EnrolmentError(f"openssl {arguments[0]}: {words[:500]}")
        return done.stdout


class Metadata:
    """EC2's instance metadata service, version 2 (EC2's user guide, "Use the Instance Metadata Service")."""

    def __init__(self, url: str, enrolment: str) -> None:
        self._host, _, path = url.partition("://")[2].partition("/")
        self._path = "/" + path.rstrip("/") if path else ""
        self._enrolment = enrolment
        self._token = ""

    def fetch(self) -> bool:
        """Keep the enrolment, if the user data of this moment have one. Returns whether they do. Raises EnrolmentError."""
        data = self._user_data()
        if not data.startswith(ASSIGNED_PREFIX):
            return False  # those of the first boot
        files = _json(data.partition(b"\n")[2]).get("write_files")
        for each in files if isinstance(files, list) else ():
            content = each.get("content") if isinstance(each, dict) else None
            name = each.get("path") if isinstance(each, dict) else None
            if isinstance(name, str) and os.path.basename(name) == os.path.basename(self._enrolment):
                if not isinstance(content, str):
                    raise EnrolmentError("the enrolment in the user data has no content")
                _json(content.encode())
                _replace(self._enrolment, content.encode())
                return True
        return False

    def _user_data(self) -> bytes:
        try:
            connection = http.client.HTTPConnection(self._host, timeout=METADATA_S)
            try:
                if not self._token:
                    life = {"X-aws-ec2-metadata-token-ttl-seconds": str(METADATA_LIFE_S)}
                    self._token = self._call(connection, "PUT", "/latest/api/token", life).decode("latin-1").strip()
                return self._call(connection, "GET", "/latest/user-data", {"X-aws-ec2-metadata-token": self._token})
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as exc:
            self._token = ""
            raise EnrolmentError(f"{self._host}: {exc}") from exc

    def _call(self, connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]) -> bytes:
        connection.request(method, self._path + path, headers=headers)
        answer = connection.getresponse()
        text = answer.read(MAX_FILE_BYTES)
        if answer.status == http.client.NOT_FOUND:
            return b""
        if answer.status != http.client.OK:
            self._token = ""  # it has ended, as it does while the machine sleeps
            raise EnrolmentError(f"{self._host}: {method} {path}: {answer.status}")
        return text


def wait_assigned(enrolment: str, metadata: Metadata) -> None:
    """Return once there is an enrolment: cloud-init writes it, or the metadata service has it."""
    told = ""
    while not os.path.exists(enrolment):
        try:
            if metadata.fetch():
                say(NOTICE, "the machine is a satellite's now")
                return
            words = "the machine belongs to no satellite yet"
        except (EnrolmentError, OSError) as exc:
            words = f"no enrolment: {exc}"
        if words != told:
            say(NOTICE, words)
        told = words
        time.sleep(PAUSE_UNASSIGNED_S)


class _DaemonConnection(http.client.HTTPConnection):
    """To the daemon, known by its name and not by its address."""

    def __init__(self, address: str, trusted: str) -> None:
        host, _, port = address.rpartition(":")
        super().__init__(host.strip("[]"), int(port), timeout=REQUEST_S)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_verify_locations(cadata=trusted)

    def connect(self) -> None:
        """Connect, and verify the daemon's certificate."""
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=DAEMON_NAME)


class Restarts:
    """Restarts a unit after a renewal, when nobody uses it. A mark in /run lasts until the next boot, which is a restart."""

    def __init__(self, unit: str, port: int, cgroup: str, root: str = "/") -> None:
        self._unit, self._port, self._root = unit, port, root
        self._events = os.path.join(root, "sys/fs/cgroup", cgroup.strip("/"), "cgroup.events")
        self._mark = os.path.join(root, "run/bentpipe-restart-" + unit)

    def want(self) -> None:
        """There is a new certificate. A unit that does not run yet will read it when it starts."""
        try:
            asked = subprocess.run(
                ("systemctl", "is-active", self._unit), capture_output=True, text=True, timeout=RESTART_S, check=False
            )
        except (OSError, subprocess.SubprocessError):
            state = ""
        else:
            state = asked.stdout.strip()
        if state not in NOT_RUNNING:
            _write(self._mark, b"")

    def try_now(self) -> None:
        """Restart it, if that is wanted and nobody uses it."""
        if not os.path.exists(self._mark) or self._is_used():
            return
        say(NOTICE, f"{self._unit} is restarted, so that it reads the machine's new certificate")
        try:
            subprocess.run(("systemctl", "try-restart", self._unit), timeout=RESTART_S, check=True)
        except (OSError, subprocess.SubprocessError) as exc:
            say(WARNING, f"{self._unit} could not be restarted: {exc}")
            return
        os.unlink(self._mark)

    def _is_used(self) -> bool:
        """Whether a step of a build runs, or a client is connected. If that cannot be found out, it is."""
        try:
            with open(self._events) as file:
                if "populated 0" not in file.read():
                    return True
        except FileNotFoundError:
            pass  # no step has run yet
        except OSError:
            return True
        return any(self._has_clients(name) for name in ("tcp", "tcp6"))

    def _has_clients(self, name: str) -> bool:
        try:
            with open(os.path.join(self._root, "proc/net", name)) as file:
                lines = file.read().splitlines()[1:]
        except FileNotFoundError:
            return False
        except OSError:
            return True
        rows = (line.split() for line in lines)
        return any(int(row[1].rpartition(":")[2], 16) == self._port and row[3] == ESTABLISHED for row in rows)


def _json(text: bytes) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise EnrolmentError(f"this is not JSON: {text[:80]!r}") from exc
    if not isinstance(found, dict):
        raise EnrolmentError("this is not an object in JSON")
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as exc:
        raise EnrolmentError(f"{path}: {exc.strerror}") from exc


def _write(path: str, data: bytes) -> None:
    """Write a file for its owner only, to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: str, data: bytes) -> None:
    _write(path + ".new", data)
    os.replace(path + ".new", path)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tell_systemd() -> None:
    """Say that there is a certificate: units that need it may start (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def keep(identity: Identity, restarts: Restarts | None) -> None:
    """Have a certificate for ever."""
    told, pause_s, ready = "", PAUSE_FIRST_S, False
    eager_until = time.monotonic() + EAGER_S
    while True:
        try:
            if identity.is_due():
                renewed = identity.ask()
                say(NOTICE, "the machine has its next certificate" if renewed else "the machine has its certificate")
                if renewed and restarts is not None:
                    restarts.want()
            told, pause_s = "", PAUSE_FIRST_S
        except (EnrolmentError, OSError) as exc:
            if str(exc) != told:
                say(WARNING, f"no certificate, trying again: {exc}")
            told = str(exc)
            time.sleep(PAUSE_DENIED_S if isinstance(exc, DeniedError) else pause_s)
            pause_s = min(2 * pause_s, PAUSE_EAGER_S if time.monotonic() < eager_until else PAUSE_MOST_S)
            if not os.path.exists(identity.file):
                continue
        if not ready and identity.is_of_use():
            tell_systemd()
            ready = True
        if restarts is not None:
            restarts.try_now()
        if not told:
            time.sleep(TICK_S)


def main(arguments: Sequence[str]) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(
        description="Gets the machine's certificate from the daemon, and the next one in time."
    )
    parser.add_argument("enrolment", help="the file with address, satellite, launch, token and trusted")
    parser.add_argument("folder", help="where identity.pem and ca.pem are kept")
    parser.add_argument(
        "--restart", metavar="UNIT", default="", help="restart this unit after a renewal, when it is idle"
    )
    parser.add_argument("--port", type=int, default=8372, help="the unit's port")
    parser.add_argument("--builds", metavar="CGROUP", default="", help="the cgroup of all steps of builds")
    parser.add_argument(
        "--metadata", metavar="URL", default=METADATA, help="where user data are asked for; empty: nowhere"
    )
    given = parser.parse_args(arguments[1:])
    os.umask(0o077)
    identity = Identity(given.enrolment, given.folder)
    identity.hold_alone()
    if given.metadata:
        wait_assigned(given.enrolment, Metadata(given.metadata, given.enrolment))
    keep(
        identity,
        Restarts(given.restart, given.port, given.builds) if given.restart else None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
