"""API keys as the ledger knows them: a fingerprint under the ledger's own secret, the last characters, an alias."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from tokenmeter.attribution import ApiKey
from tokenmeter.errors import StoreError

#: Fingerprint of every key while the ledger's secret cannot be read.
UNKNOWN = "unknown"
#: Keys whose fingerprint is remembered at most; short-lived tokens would otherwise pile up.
_MOST_KEYS = 1_000


class KeyRing:
    """The keys this process has used. A key's text is kept only in its memory.

    Args:
        aliases: SHA-256 of a key (hex) -> the user's name for it.
        secret: Reads the ledger's secret.
        fault: Told what failed.
    """

    def __init__(
        self,
        aliases: Mapping[str, str],
        *,
        secret: Callable[[], bytes],
        fault: Callable[[str, BaseException], None],
    ) -> None:
        self._aliases = dict(aliases)
        self._read_secret = secret
        self._fault = fault
        #: By their text.
        self.known: dict[str | None, ApiKey] = {}
        self._secret: bytes | None = None

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self.known)

    def identify(self, key: str | None) -> ApiKey | None:
        """`key` as the ledger knows it; None for no key.

        While the store cannot say its secret the key has no fingerprint, but budgets on it still apply.
        """
        if not key:
            return None
        known = self.known.get(key)
        if known is not None:
            return known
        alias = self._aliases.get(hashlib.sha256(key.encode()).hexdigest())
        try:
            if self._secret is None:
                self._secret = self._read_secret()
        except StoreError as error:
            self._fault("read the ledger's secret", error)
            return replace(ApiKey.identify(key, secret=b"", alias=alias), fingerprint=UNKNOWN)
        if len(self.known) >= _MOST_KEYS:
            self.known.clear()
        known = self.known[key] = ApiKey.identify(key, secret=self._secret, alias=alias)
        return known
