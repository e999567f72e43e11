"""API keys: which are accepted, compared in constant time."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from hashlib import sha256

from alexnet_server.errors import StartError, Unauthenticated
from alexnet_server.settings import Settings

log = logging.getLogger(__name__)

_SHORTEST = 8


class ApiKeys:
    """Accepted keys; with none, everybody may call.

    Args:
        keys: As given to callers.
        renewed: Asked at each check for the keys that replace them; None for no change.
    """

    def __init__(
        self, keys: Iterable[str], renewed: Callable[[], Iterable[str] | None] = lambda: None
    ) -> None:
        self._digests = _digests(keys)
        self._renewed = renewed

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
        if (keys := self._renewed()) is not None:
            self._digests = _digests(keys)
        scheme, _, credential = (authorization or "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else api_key
        if not given:
            raise Unauthenticated("This server requires an API key: send `Authorization: Bearer <key>`.")
        digest = sha256(given.encode("utf-8", "surrogateescape")).digest()
        # A list, not a generator: all keys are compared, whichever matches.
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):
            raise Unauthenticated("This API key is not accepted.")


def _digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    # They have one length, so that a comparison's time tells nothing of a key's length.
    return tuple(sha256(key.encode()).digest() for key in keys)


class KeySource:
    """The keys that the settings name, read again when their file changes: no restart for a new key.

    Args:
        settings: `--api-keys`, and `--api-keys-file` (one a line, `#` begins a comment).

    Raises:
        StartError: The file cannot be read, there is no key, or one is too short to be a key.
    """

    def __init__(self, settings: Settings) -> None:
        self._fixed = settings.api_keys.get_secret_value().split(",") if settings.api_keys else []
        self._file = settings.api_keys_file
        self._stamp = self._stamp_now()
        self.keys = self._read()

    def renewed(self) -> list[str] | None:
        """The keys if the file has changed since, and is good; else None, and the old ones stay."""
        try:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            self.keys = self._read()
        except StartError as error:
            log.warning("the new API keys cannot be used, the old ones stay: %s", error)
            return None
        log.info("new API keys are in use")
        return self.keys

    def _read(self) -> list[str]:
        keys = [*self._fixed]
        if self._file is not None:
            try:
                text = self._file.read_text(encoding="utf-8")
            except OSError as error:
                raise StartError(f"--api-keys-file: cannot read {self._file}: {error.strerror}") from error
            except UnicodeDecodeError as error:
                raise StartError(f"--api-keys-file: {self._file} is no text; write one key a line") from error
            keys += [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        keys = [key.strip() for key in keys if key.strip()]
        if not keys:
            where = self._file or "--api-keys"
            raise StartError(f"{where} holds no API key: write one a line, or leave the setting out")
        if any(len(key) < _SHORTEST for key in keys):
            raise StartError(f"an API key is shorter than {_SHORTEST} characters; use a longer one")
        return keys

    def _stamp_now(self) -> tuple[int, ...]:
        if self._file is None:
            return ()
        try:
            state = self._file.stat()
        except OSError as error:
            raise StartError(f"--api-keys-file: cannot read {self._file}: {error.strerror}") from error
        return state.st_ino, state.st_mtime_ns, state.st_size


def load_keys(settings: Settings) -> ApiKeys:
    """The accepted keys; nobody needs one where the settings name none.

    Raises:
        StartError: As `KeySource`.
    """
    if settings.api_keys is None and settings.api_keys_file is None:
        return ApiKeys(())
    source = KeySource(settings)
    return ApiKeys(source.keys, source.renewed)
