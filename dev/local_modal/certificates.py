"""Certificates for what Modal serves over TLS: an authority of the state directory's own, made once, and a
certificate for this machine that it signs.
"""

from __future__ import annotations

import datetime
import importlib.util
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

HOST_NAME, ADDRESS = "localhost", "127.0.0.1"
AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 365


class Certificates:
    """The authority and the certificate below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority_key = directory / "ca.key"
        self._ready = False
        self.ca_file = directory / "ca.pem"
        """What clients must trust."""

    @property
    def possible(self) -> bool:
        """Whether the package `cryptography` is there, which not everybody who has `modal` has."""
        return importlib.util.find_spec("cryptography") is not None

    def make_authority(self) -> None:
        """Make `ca_file` if there is none."""
        if self.ca_file.exists():
            return
        self._directory.mkdir(mode=0o700, exist_ok=True)
        key = _new_key()
        certificate = _certificate(key, "local Modal server", key, None)
        _write(self._authority_key, _key_pem(key))
        _write(self.ca_file, _pem(certificate))

    def context(self, protocols: Sequence[str]) -> ssl.SSLContext:
        """For a server on this machine that offers `protocols` by ALPN (none if empty); blocks."""
        chain = self._directory / "server.pem"
        if not self._ready:
            self._make_certificate(chain)
            self._ready = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def _make_certificate(self, chain: Path) -> None:
        """A new one for each server process, so that none expires."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.make_authority()
        authority_key = load_pem_private_key(self._authority_key.read_bytes(), None)
        assert isinstance(authority_key, EllipticCurvePrivateKey)
        authority = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        key = _new_key()
        certificate = _certificate(key, HOST_NAME, authority_key, authority)
        _write(chain, _key_pem(key) + _pem(certificate))


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _certificate(
    key: EllipticCurvePrivateKey,
    name: str,
    signer: EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
) -> x509.Certificate:
    """An authority if `issuer` is None, otherwise a certificate for this machine. With all the extensions
    that Python 3.13 insists on (VERIFY_X509_STRICT).
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    is_authority = issuer is None
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    days = AUTHORITY_DAYS if is_authority else CERTIFICATE_DAYS
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not is_authority:
        names = [x509.DNSName(HOST_NAME), x509.IPAddress(ipaddress.ip_address(ADDRESS))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return builder.sign(signer, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes) -> None:
    """Replace a file that only its owner may read."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    partial.rename(path)
