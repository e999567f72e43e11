"""TLS and API keys at both doors of a real process, and their renewal while it serves."""

import os
import shutil
import socket
import ssl
import subprocess
import time

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from alexnet_client import Client, Unauthenticated, Unavailable
from alexnet_server.access.keys import load_keys
from alexnet_server.access.tls import Certificate
from alexnet_server.errors import StartError
from alexnet_server.errors import Unauthenticated as Refused
from alexnet_server.settings import Settings
from tests.processes import server_process

PHOTO = np.full((256, 256, 3), 7, np.uint8)
FIRST, SECOND = "first-key-of-the-server", "second-key-of-the-server"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


def make_certificate(folder, name):
    """A self-signed certificate for localhost; the paths of chain and key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        [*command.split(), f"/CN={name}", "-addext", names, "-out", str(cert), "-keyout", str(key)],
        check=True,
        capture_output=True,
    )
    return cert, key


def install(source, target):
    """As Kubernetes does it: a new file in place of the old one."""
    new = target.with_suffix(".new")
    shutil.copy(source, new)
    os.replace(new, target)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    return {name: make_certificate(folder, name) for name in ("old", "new", "other")}


def shown(port, hostname=None):
    """The certificate that a new connection is shown, with or without naming a host."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(plain, server_hostname=hostname) as encrypted:
        return ssl.DER_cert_to_PEM_cert(encrypted.getpeercert(binary_form=True))


def test_both_doors_encrypt_and_take_a_renewed_certificate(tmp_path, certificates):
    cert, key, keys = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "keys"
    install(certificates["old"][0], cert)
    install(certificates["old"][1], key)
    keys.write_text(f"# ours\n{FIRST}\n")
    flags = (f"--tls-cert-file={cert}", f"--tls-key-file={key}", f"--api-keys-file={keys}")
    with server_process(tmp_path / "log", *flags) as server:
        url = f"https://localhost:{server.http_port}"
        target = f"localhost:{server.grpc_port}"
        old = certificates["old"][0]

        with Client(target, ca_file=old, api_key=FIRST) as client:
            assert client.classify(PHOTO).top.index == 7
        with Client(target, ca_file=old) as client:
            assert client.health().ready, "probes need no key"
            with pytest.raises(Unauthenticated):
                client.classify(PHOTO)
        with Client(target, max_attempts=1) as client, pytest.raises(Unavailable):
            client.classify(PHOTO, timeout_s=20)
        with triton_grpc.InferenceServerClient(target, ssl=True, root_certificates=str(old)) as client:
            assert client.is_server_ready()

        trust = ssl.create_default_context(cafile=old)
        with httpx.Client(base_url=url, verify=trust) as http:
            assert http.get("/readyz").is_success
            assert http.get("/models").status_code == 401
            assert http.get("/models", headers={"authorization": f"Bearer {FIRST}"}).is_success
            assert http.get("/models", headers={"x-api-key": FIRST}).is_success

        # Half a renewal changes nothing, the whole one everything; keys likewise.
        for port in (server.http_port, server.grpc_port):
            assert shown(port) == shown(port, "localhost") == old.read_text()
        install(certificates["new"][0], cert)
        for port in (server.http_port, server.grpc_port):
            assert shown(port) == old.read_text()
        install(certificates["new"][1], key)
        new = certificates["new"][0]
        for port in (server.http_port, server.grpc_port):
            assert shown(port) == shown(port, "localhost") == new.read_text()

        keys.write_text(f"{SECOND}\n")
        with Client(target, ca_file=new, api_key=SECOND) as client:
            assert client.classify(PHOTO).top.index == 7
        with Client(target, ca_file=new, api_key=FIRST) as client, pytest.raises(Unauthenticated):
            client.classify(PHOTO)


def test_files_that_are_no_certificate_and_its_key_are_refused(tmp_path, certificates):
    (cert, key), (_, other) = certificates["old"], certificates["other"]
    garbage = tmp_path / "garbage"
    garbage.write_text("no certificate")
    encrypted = tmp_path / "encrypted.key"
    command = ["openssl", "ec", "-in", key, "-out", encrypted, "-aes128", "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)
    for pair in ((cert, other), (garbage, key), (cert, garbage), (tmp_path / "none", key), (cert, encrypted)):
        with pytest.raises(StartError, match="--tls-cert-file"):
            Certificate(*pair)


def test_new_keys_that_are_none_leave_the_old_ones(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(FIRST)
    keys = load_keys(Settings(api_keys_file=file))
    keys.check(f"Bearer {FIRST}")
    for bad in ("", "short", b"\xff\xfe"):
        time.sleep(0.01)
        file.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        keys.check(f"Bearer {FIRST}")
        assert "keeping the old ones" in caplog.text
        caplog.clear()
    file.unlink()
    keys.check(f"Bearer {FIRST}")
    file.write_text(f"{SECOND}\n")
    keys.check(f"Bearer {SECOND}")
    with pytest.raises(Refused):
        keys.check(f"Bearer {FIRST}")
