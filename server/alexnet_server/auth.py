"""API keys: which are accepted, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256

from alexnet_server.errors import StartError, Unauthenticated
from alexnet_server.settings import Settings

_SHORTEST = 8


class ApiKeys:
    """Accepted keys; with none, everybody may call.

    Args:
        keys: As given to callers.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        # Digests have one length, so that a comparison's time tells nothing of a key's length.
        self._digests = tuple(sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None, api_key: str | None = None) -> None:
        """Let a caller in.

        Args:
            authorization: Value of `Authorization`, `Bearer <key>`.
            api_key: Value of `X-API-Key`, taken where the other is absent.

        Raises:
            Unauthenticated: Keys are required, and this is none of them.
        """
        if not self._digests:
            return
        scheme, _, credential = (authorization or "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else api_key
        if not given:
            raise Unauthenticated("This server requires an API key: send `Authorization: Bearer <key>`.")
        digest = sha256(given.encode("utf-8", "surrogateescape")).digest()
        # A list, not a generator: all keys are compared, whichever matches.
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):
            raise Unauthenticated("This API key is not accepted.")


def load_keys(settings: Settings) -> ApiKeys:
    """Keys from `--api-keys` and `--api-keys-file` (one a line, `#` begins a comment).

    Raises:
        StartError: The file cannot be read or holds no key, or a key is too short to be one.
    """
    keys = settings.api_keys.get_secret_value().split(",") if settings.api_keys else []
    if settings.api_keys_file:
        try:
            text = settings.api_keys_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"--api-keys-file: cannot read {settings.api_keys_file}: {error}") from error
        keys += [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    keys = [key.strip() for key in keys if key.strip()]
    if not keys and (settings.api_keys or settings.api_keys_file):
        raise StartError("--api-keys or --api-keys-file is given but holds no key")
    if any(len(key) < _SHORTEST for key in keys):
        raise StartError(f"an API key is shorter than {_SHORTEST} characters; use a longer one")
    return ApiKeys(keys)
