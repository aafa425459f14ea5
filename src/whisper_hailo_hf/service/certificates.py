"""An authority for tests and home networks: it signs a certificate for the server and one for clients.

Its key is not kept, so that nobody can sign more in its name: a further machine needs a new authority.
"""

import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from whisper_hailo_hf.errors import RequestError

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*")
_KEYS = ("server-key.pem", "client-key.pem", "token")


def make_test_authority(folder: str | os.PathLike, names: Sequence[str], days: int = 365) -> dict[str, Path]:
    """Writes `ca.pem`, `server.pem`, `server-key.pem`, `client.pem`, `client-key.pem` and `token` into a folder.

    Args:
        folder: where; nothing that is there is overwritten.
        names: host names and IP addresses by which clients will call the server; localhost is always among them.
        days: how long the certificates hold.

    Returns:
        The files by name. Keys and token can be read by their owner only.

    Raises:
        RequestError: the folder has such files already, or cannot be written to.
    """
    folder = Path(folder).expanduser()
    if not 1 <= days <= 3650:
        raise RequestError(f"certificates hold for 1 to 3650 days, not {days}")
    if there := [name for name in ("ca.pem", "server.pem", "client.pem", *_KEYS) if (folder / name).exists()]:
        raise RequestError(f"{folder} has a {there[0]} already: name another folder")
    ca_key, ca_name = ec.generate_private_key(ec.SECP256R1()), _name("whisper-hailo test authority")
    ca = _builder(ca_name, ca_name, ca_key.public_key(), days)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca = ca.add_extension(_usage(signs_certificates=True), critical=True)
    files = {"ca.pem": _pem(ca.sign(ca_key, hashes.SHA256())), "token": secrets.token_urlsafe(32).encode()}
    hosts = x509.SubjectAlternativeName([_host(name) for name in dict.fromkeys(["localhost", "127.0.0.1", *names])])
    for who, purpose in (("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(f"whisper-hailo {who}"), ca_name, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if who == "server":
            builder = builder.add_extension(hosts, critical=False)
        files[f"{who}.pem"] = _pem(builder.sign(ca_key, hashes.SHA256()))
        files[f"{who}-key.pem"] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            mode = 0o600 if name in _KEYS else 0o644
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written to ({error.strerror})") from error
    return {name: folder / name for name in files}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ, a Pi's above all
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _HOST.fullmatch(name):
        raise RequestError(f"{name!r} is no name of a host, as it would stand in an address")
    return x509.DNSName(name)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
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


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
