"""`alexnet-server` whose public weights are a small network at ALEXNET_TEST_SITE, and never proven."""

import os
import sys
from dataclasses import replace

from alexnet_server.main import main
from alexnet_server.models.public import importing, sources


def publish(url: str, digest: str) -> None:
    """Let ``bvlc_alexnet`` be the file there."""
    source = replace(sources.SOURCES["bvlc_alexnet"], urls=(url,), digest=digest)
    sources.SOURCES["bvlc_alexnet"] = source


if __name__ == "__main__":
    publish(os.environ.pop("ALEXNET_TEST_SITE"), os.environ.pop("ALEXNET_TEST_DIGEST"))
    importing.prove = lambda _weights: ["the photos were not looked at"]
    sys.exit(main())
