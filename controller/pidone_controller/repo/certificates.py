"""Creates and checks the repo's CA and its serving certificates, as values.

The CA is part of the pods' image, or mounted beside a sidecar, so it is valid for years; a serving certificate is cheap
and valid for weeks. Keys are ECDSA on P-256, as kubeadm's and cert-manager's are.
"""

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pidone.errors import PidoneError

CA_LIFE = timedelta(days=3650)
LIFE = timedelta(days=90)
BACKDATED = timedelta(hours=1)  # clocks of nodes differ


class CertificateError(PidoneError):
    """A certificate or key cannot be read, or the two do not fit; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM: ``tls.crt`` and ``tls.key`` of a Secret."""

    certificate: bytes
    key: bytes


def make_ca(now: datetime, name: str = "pidone-repo") -> Pair:
    """Return a new CA, for the image and for ``issue``. It may sign certificates of servers, but no further CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA {now:%Y-%m-%d}")])
    public = key.public_key()
    usage = _usage(signs_certificates=True)
    certificate = (
        _builder(subject, subject, public, now, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue(ca: Pair, names: Iterable[str], now: datetime) -> Pair:
    """Return a serving certificate for DNS names and addresses. Raises ``CertificateError`` for a bad CA."""
    authority, signing = _read(ca)
    unique = list(dict.fromkeys(names))
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    ends = min(now + LIFE, authority.not_valid_after_utc)
    # Clients read the alternative names; a common name may have 64 characters at most.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, unique[0][:64])])
    certificate = (
        _builder(subject, authority.subject, public, now, ends)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in unique]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
        .sign(signing, hashes.SHA256())
    )
    return _pair(certificate, key)


def due(pair: Pair, now: datetime) -> bool:
    """True if it must be renewed: two thirds of its life are over. Raises ``CertificateError``."""
    certificate, _ = _read(pair)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begins + (ends - begins) * 2 / 3 or now < begins


def fits(pair: Pair, ca: Pair, names: Iterable[str]) -> bool:
    """True if this CA issued it, for all these names. False also if it cannot be read."""
    try:
        certificate, (authority, _) = _read(pair)[0], _read(ca)
        certificate.verify_directly_issued_by(authority)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (CertificateError, InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return set(extension.value) >= {_name(one) for one in names}


def context(pair: Pair) -> ssl.SSLContext:
    """Return a context that serves with it. Raises ``CertificateError``."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["http/1.1"])
    # ssl reads only files, and the controller may have no writable folder: memory with a path
    file = os.memfd_create("pidone-tls", os.MFD_CLOEXEC)
    try:
        os.write(file, pair.certificate + pair.key)
        tls.load_cert_chain(f"/proc/self/fd/{file}")
    except ssl.SSLError as error:
        raise CertificateError(
            f"the serving certificate and its key do not fit: {error.reason or error}"
        ) from error
    finally:
        os.close(file)
    return tls


def trusting(authorities: bytes) -> ssl.SSLContext:
    """Return a context for clients that trusts these certificates alone, in PEM. Raises ``CertificateError``."""
    try:
        return ssl.create_default_context(cadata=authorities.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CertificateError(f"no certificates of authorities in PEM: {error}") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(ends)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _read(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"not a certificate and its key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"expected an ECDSA key, not {type(key).__name__}")
    if key.public_key() != certificate.public_key():
        raise CertificateError("the key is not that of the certificate")
    return certificate, key
