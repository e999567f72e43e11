"""API keys: which are accepted, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256

from alexnet_server.access.reloaded import Reloaded
from alexnet_server.errors import StartError, Unauthenticated
from alexnet_server.settings import Settings

_SHORTEST = 8


class ApiKeys:
    """Accepted keys; with none, everybody may call.

    Args:
        digests: Asked at each check for the accepted keys' SHA-256; None when nobody needs a key.
    """

    def __init__(self, digests: Callable[[], tuple[bytes, ...]] | None = None) -> None:
        self._digests = digests

    def __bool__(self) -> bool:
        return self._digests is not None

    def check(self, authorization: str | None, api_key: str | None = None) -> None:
        """Let a caller in.

        Args:
            authorization: Value of `Authorization`, `Bearer <key>`.
            api_key: Value of `X-API-Key`, taken where the other is absent.

        Raises:
            Unauthenticated: Keys are required, and this is none of them.
        """
        if self._digests is None:
            return
        scheme, _, credential = (authorization or "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else api_key
        if not given:
            raise Unauthenticated("This server requires an API key: send `Authorization: Bearer <key>`.")
        digest = sha256(given.encode("utf-8", "surrogateescape")).digest()
        # A list, not a generator: all keys are compared, whichever matches.
        if not any([hmac.compare_digest(digest, known) for known in self._digests()]):
            raise Unauthenticated("This API key is not accepted.")


def load_keys(settings: Settings) -> ApiKeys:
    """The keys of `--api-keys` and `--api-keys-file` (one a line, `#` begins a comment), if there are any.

    Raises:
        StartError: The file cannot be read, there is no key, or one is too short to be a key.
    """
    if settings.api_keys is None and settings.api_keys_file is None:
        return ApiKeys()
    files = [settings.api_keys_file] if settings.api_keys_file else []
    return ApiKeys(Reloaded("API keys", files, lambda: _read(settings)).get)


def _read(settings: Settings) -> tuple[bytes, ...]:
    keys = settings.api_keys.get_secret_value().split(",") if settings.api_keys else []
    file = settings.api_keys_file
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise StartError(f"--api-keys-file: cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise StartError(f"--api-keys-file: {file} is not text; write one key per line") from error
        keys += [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    keys = [key.strip() for key in keys if key.strip()]
    if not keys:
        raise StartError(
            f"{file or '--api-keys'} holds no API key: write one per line, or leave the setting out"
        )
    if any(len(key) < _SHORTEST for key in keys):
        raise StartError(f"an API key is shorter than {_SHORTEST} characters; use a longer one")
    # They have one length, so that the time of a comparison reveals nothing of a key's length.
    return tuple(sha256(key.encode()).digest() for key in keys)
