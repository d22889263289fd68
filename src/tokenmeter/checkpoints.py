"""Signed checkpoints: what a ledger held at one moment, so that nobody can later show another past.

The chain proves that nothing inside of it was changed. Whoever can write the whole ledger anew can make another chain;
a head that was kept elsewhere finds that, and a signature says that the kept file is the one that was handed out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.ledger import utcnow
from tokenmeter.stores.urls import redacted
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from tokenmeter.stores.base import Store

__all__ = ["Checkpoint", "check", "sign"]

_PURPOSE = b"tokenmeter checkpoint 1"
_SHORTEST = 32  # bytes of a key: a guessed key signs anything
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a ledger at one moment, signed.

    Attributes:
        ledger: URL of the ledger, without password.
        head: Hash of the chain's last record (hex): it stands for every record before it.
        entries: How many entries there were.
        signed_at: When, aware UTC.
        key: Which key signed: the first 16 digits of its digest, no secret.
        signature: HMAC-SHA256 over all of the above (hex).
    """

    ledger: str
    head: str
    entries: int
    signed_at: datetime
    key: str
    signature: str = ""

    def to_json(self) -> str:
        """One line of JSON, to be kept where the ledger's owner cannot change it."""
        return json.dumps({**self._signed(), "signature": self.signature})

    @classmethod
    def from_json(cls, text: str) -> Checkpoint:
        """What `to_json` wrote.

        Raises:
            ConfigurationError: it is not a checkpoint.
        """
        try:
            said: dict[str, Any] = json.loads(text)
            return cls(
                ledger=str(said["ledger"]),
                head=str(said["head"]),
                entries=int(said["entries"]),
                signed_at=datetime.fromisoformat(said["signed_at"]),
                key=str(said["key"]),
                signature=str(said["signature"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigurationError(
                "That is not a checkpoint: give the line of JSON that `tokenmeter checkpoint` printed."
            ) from error

    def _signed(self) -> dict[str, Any]:
        return {
            "ledger": self.ledger,
            "head": self.head,
            "entries": self.entries,
            "signed_at": self.signed_at.isoformat(),
            "key": self.key,
        }

    def digest(self, key: bytes) -> str:
        """What the signature is when `key` signs."""
        said = json.dumps(self._signed(), sort_keys=True, separators=(",", ":")).encode()
        return hmac.new(key, said, hashlib.sha256).hexdigest()


def sign(store: Store, key: bytes | None = None) -> Checkpoint:
    """The present state of the ledger in `store`, signed.

    Args:
        store: The ledger.
        key: At least 32 random bytes that the reader of the checkpoint knows, too; None = a key that is derived from
            the ledger's own secret, with which only this ledger can check it.

    Raises:
        ConfigurationError: the key is too short to sign with.
        StoreUnavailableError: the ledger cannot be read.
    """
    signing = _key(store, key)
    facts = store.health().facts
    if "head" not in facts:  # health answers while a server is away, too
        raise StoreUnavailableError(
            f"The ledger {redacted(store.url)} cannot be read now, so there is no head to sign: try again when it can."
        )
    plain = Checkpoint(
        ledger=redacted(store.url),
        head=str(facts["head"]),
        entries=int(facts["entries"]),
        signed_at=utcnow(),
        key=hashlib.sha256(signing).hexdigest()[:16],
    )
    return replace(plain, signature=plain.digest(signing))


def check(store: Store, checkpoint: Checkpoint, key: bytes | None = None) -> str | None:
    """Why the signature of `checkpoint` is not the one of `key`; None when it is.

    Whether its head is in the chain is a question to `Store.verify`.

    Raises:
        ConfigurationError: the key is too short to have signed.
    """
    signing = _key(store, key)
    if hashlib.sha256(signing).hexdigest()[:16] != checkpoint.key:
        return "it was signed with another key"
    if not hmac.compare_digest(checkpoint.digest(signing), checkpoint.signature):
        return "it is not what was signed"
    return None


def _key(store: Store, key: bytes | None) -> bytes:
    if key is None:
        return hmac.new(store.secret(), _PURPOSE, hashlib.sha256).digest()
    if not _SHORTEST <= len(key) <= _LONGEST:
        raise ConfigurationError(
            f"A key to sign with has {_SHORTEST} to {_LONGEST:,} bytes, not {len(key)}: make one with "
            "`head -c 32 /dev/urandom > key`."
        )
    return key
