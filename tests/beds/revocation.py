"""An authority of client certificates that can revoke them."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAME = x509.NameOID.COMMON_NAME
DAY = datetime.timedelta(days=1)


class RevokingAuthority:
    """Writes its files into a folder: `clients.pem`, `NAME.pem` and `NAME.key` of each client, `crl.pem`."""

    def __init__(self, folder: Path, name: str = "clients") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NAME, name)])
        self._serials: dict[str, int] = {}
        own = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.file = folder / f"{name}.pem"
        signed = own.add_extension(usage, True).sign(self._key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now, serial = datetime.datetime.now(datetime.UTC), x509.random_serial_number()
        return x509.CertificateBuilder(self._name, subject, key.public_key(), serial, now - DAY, now + 30 * DAY)

    def issue(self, name: str) -> tuple[Path, Path]:
        """A client's certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = self._builder(x509.Name([x509.NameAttribute(NAME, name)]), key).add_extension(alternative, False)
        signed = builder.sign(self._key, hashes.SHA256())
        self._serials[name] = signed.serial_number
        files = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        files[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        clear = serialization.NoEncryption()
        files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, clear))
        return files

    def revoke(
        self, names: Sequence[str] = (), *, age: datetime.timedelta = DAY, life: datetime.timedelta = 7 * DAY
    ) -> Path:
        """Write the CRL, `age` old, with these clients."""
        begins = datetime.datetime.now(datetime.UTC) - age
        builder = x509.CertificateRevocationListBuilder(self._name, begins, begins + life)
        for name in names:
            entry = x509.RevokedCertificateBuilder(self._serials[name], begins).build()
            builder = builder.add_revoked_certificate(entry)
        path = self._folder / "crl.pem"
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path
