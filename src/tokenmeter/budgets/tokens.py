"""Counting a prompt's tokens before it leaves, with the tokenizers that lie on this machine's disk. Never fetched.

tiktoken keeps the encodings it has once loaded in a folder (``TIKTOKEN_CACHE_DIR``, else one in the temporary folder).
Where one lies there whole, it is loaded by a thread at its first use, which takes half a second; until then, and where
it is missing, a prompt is bounded by its bytes. To have them: ``python -c "import tiktoken;
tiktoken.get_encoding('o200k_base')"`` once, on a machine that may fetch them, with ``TIKTOKEN_CACHE_DIR`` set.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tokenmeter import processes
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.processes import make_lock, run_alone

log = logging.getLogger("tokenmeter")

#: Encoding -> SHA-256 of its file (tiktoken_ext/openai_public.py).
_HASHES = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"  # only its hash is used: the file's name
#: Beginning of a model's name -> encoding; the first that fits (tiktoken/model.py).
_MODELS = (
    ("gpt-4o", "o200k_base"),
    ("gpt-4.", "o200k_base"),
    ("gpt-5", "o200k_base"),
    ("chatgpt-4o", "o200k_base"),
    ("o1", "o200k_base"),
    ("o3", "o200k_base"),
    ("o4", "o200k_base"),
    ("gpt-4", "cl100k_base"),
    ("gpt-3.5", "cl100k_base"),
    ("text-embedding-", "cl100k_base"),
)
#: Prompts beyond this many characters are bounded by their bytes: counting them would take longer than it is worth.
_MOST_CHARACTERS = 1_000_000


class Encoding(Protocol):
    """What is used of `tiktoken.Encoding`."""

    def encode_ordinary(self, text: str) -> Sequence[int]:
        """The tokens of `text`, special ones taken as plain text."""
        ...


def encoding_of(provider: str, model: str | None) -> str | None:
    """The encoding that a model of OpenAI's reads its prompts in; None where that is not known."""
    if provider not in {"openai", "azure"} or model is None:
        return None
    name = model.removeprefix("ft:")
    return next((encoding for prefix, encoding in _MODELS if name.startswith(prefix)), None)


class TokenCounter:
    """Counts tokens with what lies on the disk.

    Args:
        load: Loads an encoding by its name; None when it is not at hand.
    """

    def __init__(self, load: Callable[[str], Encoding | None] | None = None) -> None:
        self._load = load or _load
        self._encodings: dict[str, Encoding | None] = {}
        self._loading: dict[str, object] = {}  # by a thread of which process, which has none in a forked child

    def may_have(self, encoding: str) -> bool:
        """Whether an encoding is at hand, or nobody has looked yet."""
        return self._encodings.get(encoding, self) is not None or self._was_left(encoding)

    def _was_left(self, encoding: str) -> bool:
        """Whether the parent was loading it when this process was forked."""
        loading = self._loading.get(encoding)
        return loading is not None and processes.is_parents(loading)

    def count(self, encoding: str, texts: Sequence[str]) -> int | None:
        """The tokens of `texts`; None when the encoding is not at hand (yet). Never waits."""
        if encoding not in self._encodings or self._was_left(encoding):
            self._begin(encoding)
            return None
        found = self._encodings[encoding]
        if found is None or sum(map(len, texts)) > _MOST_CHARACTERS:
            return None
        try:
            return sum(len(found.encode_ordinary(text)) for text in texts)
        except Exception as error:
            let_interrupt_through(error)
            log.exception("tokenmeter could not count the tokens of a prompt; its bytes bound it")
            return None

    def load(self, encoding: str) -> bool:
        """Load an encoding now; whether it is at hand."""
        try:
            self._encodings[encoding] = self._load(encoding)
        except Exception as error:
            let_interrupt_through(error)
            log.exception("tokenmeter could not load the encoding %s; bytes bound prompts", encoding)
            self._encodings[encoding] = None
        self._loading.pop(encoding, None)
        return self._encodings[encoding] is not None

    def _begin(self, encoding: str) -> None:
        run_alone(_starting, self._begin_once, encoding)

    def _begin_once(self, encoding: str) -> None:
        if encoding not in self._encodings or self._was_left(encoding):
            self._encodings[encoding] = None
            self._loading[encoding] = processes.this_process
            try:
                threading.Thread(target=self.load, args=(encoding,), name="tokenmeter-tokens", daemon=True).start()
            except RuntimeError:  # none can be had: the next prompt tries again
                del self._encodings[encoding], self._loading[encoding]


def _load(encoding: str) -> Encoding | None:
    """An encoding from tiktoken's own folder, if its file lies there whole."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    name = hashlib.sha1(_ADDRESS.format(encoding).encode(), usedforsecurity=False).hexdigest()
    path = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache") / name
    # Looked at first, since tiktoken would fetch what is missing or not what it should be.
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _HASHES[encoding]:
        return None
    import tiktoken  # noqa: PLC0415 - half a second of reading, in a thread

    return tiktoken.get_encoding(encoding)


_starting = make_lock()
