"""A private authority for one cluster, and the certificates that it signs.

`ca.pem` and `ca.key` are made once; `service.pem` and `service.key` are for every service of the
cluster (server and client), `NAME.pem` and `NAME.key` for people and machines that call (client
alone). Keys are for their owner's eyes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hyper._tls import SERVER_NAME
from hyper.cluster.home import write_private
from hyper.errors import InvalidArgumentError

_AUTHORITY_DAYS = 3650
_SKEW = timedelta(minutes=5)


def make_authority(folder: Path) -> None:
    """`ca.pem` and `ca.key`, unless they are there."""
    if (folder / "ca.key").exists() and (folder / "ca.pem").exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Hyper cluster authority")
    builder = (
        _begin(name, name, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    _write(folder, "ca", builder.sign(key, hashes.SHA256()), key)


def make_service(folder: Path, hosts: Sequence[str], days: int) -> None:
    """`service.pem` and `service.key`: for the shared name, this machine, and `hosts`."""
    names = dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", *hosts])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    _issue(folder, "service", list(names), usages, days)


def make_client(folder: Path, name: str, days: int) -> None:
    """`NAME.pem` and `NAME.key`, with which nobody can pose as a service."""
    if name in ("ca", "service") or not name.replace("-", "").isalnum():
        raise InvalidArgumentError(f"{name[:80]!r}: use letters, digits and dashes")
    _issue(folder, name, [], [ExtendedKeyUsageOID.CLIENT_AUTH], days)


def _issue(
    folder: Path, name: str, hosts: Sequence[str], usages: list[x509.ObjectIdentifier], days: int
) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # `make_authority` makes no other
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _begin(_name(name), authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    if hosts:
        alternatives = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(alternatives, critical=False)
    _write(folder, name, builder.sign(signer, hashes.SHA256()), key)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(folder / f"{name}.key", private.decode())
    public = certificate.public_bytes(serialization.Encoding.PEM).decode()
    (folder / f"{name}.pem").write_text(public)
