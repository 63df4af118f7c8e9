"""TLS as the ``OTEL_EXPORTER_OTLP_`` variables ask for it: whom to trust, and who we are.

What is wrong with a file is said at the start. Without this, gRPC would tell of it only when it connects, and only on
standard error.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_procmon.deliver.delivery import DeliveryError

if TYPE_CHECKING:
    from otel_procmon.deliver.settings import Otlp

# Where systems keep the certificates that they trust, in one file; as Go's crypto/x509 knows them (root_linux.go).
_SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL 6
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # RHEL 7
    "/etc/ssl/cert.pem",  # Alpine
)


class Pem(NamedTuple):
    """The contents of the files, as gRPC takes them."""

    roots: bytes | None
    """None: what the TLS library trusts by itself."""
    key: bytes | None
    chain: bytes | None


def context(otlp: Otlp) -> ssl.SSLContext:
    """For one endpoint. Raises DeliveryError, one sentence that names the file and the variable."""
    bundle = otlp.certificate or _system_bundle()
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if otlp.certificate is None:
        # Besides the bundle: SSL_CERT_FILE, SSL_CERT_DIR and a folder of certificates, which are read when needed.
        made.set_default_verify_paths()
    if bundle is not None:
        try:
            made.load_verify_locations(bundle)
        except (ssl.SSLError, OSError) as error:
            raise DeliveryError(
                f"{bundle} cannot be used as certificates to trust ({_why(error)}); let "
                "OTEL_EXPORTER_OTLP_CERTIFICATE name a file of certificates in PEM form"
            ) from error
    if otlp.client_certificate is None:
        if otlp.client_key is not None:
            raise DeliveryError(
                "OTEL_EXPORTER_OTLP_CLIENT_KEY is set without a certificate that it belongs to; set "
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE too"
            )
        return made
    try:
        # Without the password OpenSSL would ask for it on the terminal.
        made.load_cert_chain(otlp.client_certificate, otlp.client_key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise DeliveryError(
            f"{otlp.client_certificate} with the key in {otlp.client_key or 'the same file'} cannot be used as our own "
            f"certificate ({_why(error)}); let OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and "
            "OTEL_EXPORTER_OTLP_CLIENT_KEY name a certificate and its key in PEM form, the key without a password"
        ) from error
    return made


def pem(otlp: Otlp) -> Pem:
    """The same for gRPC, which brings its own TLS. Raises DeliveryError."""
    context(otlp)
    # GRPC_DEFAULT_SSL_ROOTS_FILE_PATH is gRPC's own variable for the certificates it trusts.
    system = None if "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in os.environ else _system_bundle()
    roots, chain = otlp.certificate or system, otlp.client_certificate
    try:
        return Pem(
            roots=None if roots is None else roots.read_bytes(),
            key=None if chain is None else (otlp.client_key or chain).read_bytes(),
            chain=None if chain is None else chain.read_bytes(),
        )
    except OSError as error:
        raise DeliveryError(f"{error.filename} cannot be read: {error.strerror}; see OTEL_EXPORTER_OTLP_") from error


def stamp(otlp: Otlp) -> tuple[object, ...]:
    """Something else when one of the files has been changed or replaced."""
    return tuple(map(_stamp, (otlp.certificate, otlp.client_certificate, otlp.client_key)))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)


def _system_bundle() -> Path | None:
    """The file of certificates that this system trusts. Not every Python has been told where it is."""
    known = ssl.get_default_verify_paths().cafile
    return next((path for path in map(Path, filter(None, (known, *_SYSTEM_BUNDLES))) if path.is_file()), None)


def _no_password() -> str:
    raise ValueError("the key has a password")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        # Such as KEY_VALUES_MISMATCH.
        return (error.reason or "no certificate in PEM form found").replace("_", " ").lower()
    return (getattr(error, "strerror", None) or str(error)).lower()
