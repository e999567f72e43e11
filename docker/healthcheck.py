"""Exit 0 when the server in this container is ready: for Docker and compose (Kubernetes asks by itself)."""

import os
import ssl
import sys
import urllib.request

port = os.environ.get("ALEXNET_HTTP_PORT", "8080")
# Its own certificate need not name the loopback address.
context = ssl._create_unverified_context() if "ALEXNET_TLS_CERT_FILE" in os.environ else None
scheme = "https" if context else "http"
try:
    urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/readyz", timeout=4, context=context)
except OSError as error:
    sys.exit(f"not ready: {error}")
