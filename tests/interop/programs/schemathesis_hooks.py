"""Real photos wherever the document asks for bytes, for schemathesis; ``PHOTO`` names the file."""

import os
from pathlib import Path

import schemathesis
from hypothesis import strategies

photos = strategies.just(Path(os.environ["PHOTO"]).read_bytes())
schemathesis.openapi.format("binary", photos)
for kind in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, photos)
