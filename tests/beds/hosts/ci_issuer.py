"""A CI system of one's own: GitLab's discovery and keys over HTTPS, and OIDC tokens for its jobs."""

import json
import ssl
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class CiIssuer:
    """`url` is the issuer; `ca` its CA's certificate, a file."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = directory / "gitlab-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        public: dict[str, object] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
        keys = {"keys": [{**public, "kid": "k", "use": "sig", "alg": "RS256"}]}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                pages = {
                    "/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"},
                    "/keys": keys,
                }
                body = json.dumps(pages.get(self.path)).encode()
                self.send_response(200 if self.path in pages else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def token(self, project_id: str = "7", **claims: object) -> str:
        """A job's token, on the protected branch main of the project."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": "bentpipe", "iat": now, "exp": now + 300, "jti": str(uuid.uuid4())}
        job = {
            "project_id": project_id,
            "project_path": "acme/app",
            "ref_path": "refs/heads/main",
            "ref_protected": "true",
        }
        return jwt.encode({**usual, **job, **claims}, KEY, "RS256", {"kid": "k"})

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
