"""The certificate of both ports, read again when its files change, as they do when it is renewed."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import grpc

from alexnet_server.access.reloaded import Reloaded
from alexnet_server.errors import StartError
from alexnet_server.settings import Settings


class _Pair(NamedTuple):
    context: ssl.SSLContext
    key: bytes
    chain: bytes


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
        try:
            self._pair = Reloaded("TLS certificate and key", (cert_file, key_file), self._load)
        except OSError as error:  # ssl.SSLError is one
            raise StartError(
                f"--tls-cert-file {cert_file}, --tls-key-file {key_file}: {self._problem(error)}"
            ) from error

    def context(self) -> ssl.SSLContext:
        """For the HTTP port."""
        return self._pair.get().context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For the gRPC port."""
        given = self._pair.get()

        def renewed() -> grpc.ServerCertificateConfiguration | None:  # asked on threads of gRPC's own
            nonlocal given
            if (pair := self._pair.get()) is given:
                return None
            given = pair
            return grpc.ssl_server_certificate_configuration([(given.key, given.chain)])

        first = grpc.ssl_server_certificate_configuration([(given.key, given.chain)])
        # None means no change; the stubs do not know that.
        return grpc.dynamic_ssl_server_credentials(first, renewed)  # type: ignore[arg-type]

    def _load(self) -> _Pair:
        key, chain = self._key_file.read_bytes(), self._cert_file.read_bytes()  # OpenSSL names no file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._cert_file, self._key_file, password=_no_passphrase)
        context.sni_callback = self._on_handshake
        return _Pair(context, key, chain)

    def _on_handshake(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self.context()

    def _problem(self, error: OSError) -> str:
        """In words; OpenSSL's own are `[SSL] PEM lib` and the like."""
        if not isinstance(error, ssl.SSLError):
            return f"cannot read {error.filename}: {error.strerror}"
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key does not match the certificate; give the pair that was issued together"
        if b"BEGIN CERTIFICATE" not in self._cert_file.read_bytes():
            return f"{self._cert_file} is not a certificate in PEM format"
        key = self._key_file.read_bytes()
        if b"ENCRYPTED" in key:
            return "the key has a passphrase; remove it with: openssl pkey -in KEY -out NEW-KEY"
        if b"PRIVATE KEY" not in key:
            return f"{self._key_file} is not a key in PEM format"
        return f"not a certificate and its key, or damaged ({error.reason or error})"


def load_certificate(settings: Settings) -> Certificate | None:
    """The certificate that the settings name; None where the ports speak plain text.

    Raises:
        StartError: It cannot be used.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Certificate(settings.tls_cert_file, settings.tls_key_file)


def _no_passphrase() -> str:
    """Answers OpenSSL, which would otherwise ask on the terminal, for an encrypted key."""
    return ""
