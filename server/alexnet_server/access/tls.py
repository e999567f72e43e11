"""The certificate of both doors, read again when its files change, as a renewal does."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

import grpc

from alexnet_server.errors import StartError
from alexnet_server.settings import Settings

log = logging.getLogger(__name__)


class Certificate:
    """A PEM certificate chain and its key.

    A connection gets what the files hold when it is opened. Files that are half written or do not belong
    together are passed over, and the last good pair stays in use.

    Args:
        cert_file: The chain.
        key_file: Its key, without a passphrase.

    Raises:
        StartError: A file cannot be read, or they are no certificate and its key.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._lock = threading.Lock()  # gRPC asks on threads of its own
        try:
            self._stamp = self._stamp_now()
            self._load()
        except (OSError, ssl.SSLError) as error:
            raise StartError(
                f"--tls-cert-file {cert_file}, --tls-key-file {key_file}: {self._problem(error)}"
            ) from error

    def context(self) -> ssl.SSLContext:
        """For the HTTP door."""
        return self._context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For the gRPC door."""
        given = self._pair

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            self._renew()
            if self._pair is given:
                return None
            given = self._pair
            return grpc.ssl_server_certificate_configuration([given])

        first = grpc.ssl_server_certificate_configuration([given])
        # None means no change; the stubs do not know that.
        return grpc.dynamic_ssl_server_credentials(first, renewed)  # type: ignore[arg-type]

    def _load(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._cert_file, self._key_file, password=_no_passphrase)
        context.sni_callback = self._on_handshake
        self._pair = self._key_file.read_bytes(), self._cert_file.read_bytes()
        self._context = context

    def _on_handshake(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self._renew()
        connection.context = self._context

    def _renew(self) -> None:
        """Load the files if they have changed."""
        with self._lock:
            try:
                stamp = self._stamp_now()
                if stamp == self._stamp:
                    return
                self._stamp = stamp
                self._load()
            except (OSError, ssl.SSLError) as error:
                log.warning("the renewed certificate cannot be used, the old one stays: %s", error)
            else:
                log.info("a renewed certificate is in use")

    def _problem(self, error: OSError) -> str:
        """In words; OpenSSL's own are `[SSL] PEM lib` and the like."""
        if not isinstance(error, ssl.SSLError):
            return f"cannot read {error.filename or 'them'}: {error.strerror}"
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is not the certificate's; give the pair that was issued together"
        if b"BEGIN CERTIFICATE" not in self._cert_file.read_bytes():
            return f"{self._cert_file} is no certificate in PEM format"
        key = self._key_file.read_bytes()
        if b"ENCRYPTED" in key:
            return "the key has a passphrase; write it without: openssl pkey -in KEY -out NEW-KEY"
        if b"PRIVATE KEY" not in key:
            return f"{self._key_file} is no key in PEM format"
        return f"not a certificate and its key, or damaged ({error.reason or error})"

    def _stamp_now(self) -> tuple[tuple[int, int, int], ...]:
        # The inode too: Kubernetes renews by swapping a link, and a copy may keep its times.
        states = (self._cert_file.stat(), self._key_file.stat())
        return tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)


def load_certificate(settings: Settings) -> Certificate | None:
    """The certificate that the settings name; None where the doors speak plain text.

    Raises:
        StartError: It cannot be used.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Certificate(settings.tls_cert_file, settings.tls_key_file)


def _no_passphrase() -> str:
    """Answers OpenSSL, which would otherwise ask on the terminal, for an encrypted key."""
    return ""
