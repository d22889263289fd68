"""Editions of the base data: genai-prices as it is installed, or as it was published later. Data only.

Importing the installed package builds some forty thousand objects and takes half a second. So its data is kept once, in
the form in which genai-prices publishes it (a JSON array), one provider to a line: a process reads the lines it needs.
The kept file is named after the data it was made from and after its own content, so it is never out of date and a
damaged one is never read; whatever goes wrong with it, the package is imported instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date, time
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, cast

from tokenmeter.errors import PricingError

#: A provider, model or price set as published: decoded JSON, numbers as text or Decimal.
Record = Mapping[str, Any]

#: What the kept form carries; names, descriptions and extractors are left out.
_PROVIDER_FIELDS = ("id", "fallback_model_providers")
_MODEL_FIELDS = ("id", "match", "context_window", "prices", "price_variants")
_LINE = re.compile(rb'\{"id":"([^"\\]+)"')
#: Kept files of so many editions stay: environments with different releases share the folder.
_MOST_FILES = 4


class Edition:
    """One edition of the base data.

    Args:
        content: Its kept form (`keepable`).
        name: What rows of it name as their source, for example ``genai-prices 0.2.3``.
        digest: Identity of the data it was made from; default: SHA-256 of `content`.
    """

    def __init__(self, content: bytes, *, name: str | None = None, digest: str | None = None) -> None:
        self.content = content
        self.digest = digest or hashlib.sha256(content).hexdigest()
        self.name = name or f"genai-prices {self.digest[:12]}"
        self._lines = {found[1].decode(): line for line in content.splitlines() if (found := _LINE.match(line))}

    @classmethod
    def parse(cls, published: bytes | str) -> Edition:
        """An edition from what genai-prices publishes, or from a kept one.

        Raises:
            PricingError: it is no price list.
        """
        try:
            providers = json.loads(published, parse_float=Decimal)
        except ValueError as error:
            raise PricingError(f"The price list is no valid JSON ({error}).") from error
        if not isinstance(providers, list):
            raise PricingError("The price list must be a JSON array of providers, as genai-prices publishes it.")
        return cls(keepable(cast("Iterable[Any]", providers)))

    def __contains__(self, provider: str) -> bool:
        return provider in self._lines

    def __iter__(self) -> Iterator[str]:
        """Ids of the providers."""
        return iter(self._lines)

    def provider(self, provider: str) -> Record:
        """The record of a provider.

        Raises:
            KeyError: it is not listed.
        """
        record: Record = json.loads(self._lines[provider].rstrip(b","))
        return record


def keepable(providers: Iterable[Any]) -> bytes:
    """Providers, decoded from JSON or as the package's objects, as a JSON array with one provider to a line.

    Raises:
        PricingError: a record lacks what every record has.
    """
    lines: list[str] = []
    for number, provider in enumerate(providers, start=1):
        record = _chosen(provider, _PROVIDER_FIELDS)
        listed = _field(provider, "models")
        if not isinstance(listed, list) or not isinstance(record.get("id"), str):
            raise PricingError(f"The price list's provider {number} has no id or no list of models.")
        models = [_chosen(model, _MODEL_FIELDS) for model in cast("Iterable[Any]", listed)]
        if not all(isinstance(model.get("id"), str) and {"match", "prices"} <= model.keys() for model in models):
            raise PricingError(f"The price list's provider {record['id']!r} has a model without id, match or prices.")
        record["models"] = models
        lines.append(json.dumps(record, separators=(",", ":"), ensure_ascii=True))
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def _field(record: Any, name: str) -> Any:
    """A field of a decoded record or of one of the package's objects."""
    return cast("Record", record).get(name) if isinstance(record, Mapping) else getattr(record, name, None)


def _chosen(record: Any, names: Iterable[str]) -> dict[str, Any]:
    fields = ((name, _field(record, name)) for name in names)
    return {name: plain(value) for name, value in fields if value is not None}


def plain(value: Any) -> Any:
    """JSON's own kinds; exact numbers and days as text, the package's objects by their fields."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, time | date):
        return value.isoformat()
    if isinstance(value, list):
        return [plain(each) for each in cast("Iterable[Any]", value)]
    fields = cast("Record", value if isinstance(value, Mapping) else vars(value))
    return {name.rstrip("_"): plain(each) for name, each in fields.items() if each is not None}


@cache
def installed() -> Edition:
    """The edition that is installed: from the kept file, else from the package (which is then kept)."""
    digest = installed_digest()
    release, content = _read_kept("genai-prices", digest)
    if content is not None:
        return Edition(content, name=f"genai-prices {release}", digest=digest)
    from importlib.metadata import version  # noqa: PLC0415 - as below

    from genai_prices import data  # noqa: PLC0415 - half a second: only when no kept file is at hand

    release = version("genai-prices")
    content = keepable(data.providers)
    keep(f"genai-prices-{release}", digest, content)
    return Edition(content, name=f"genai-prices {release}", digest=digest)


def is_read() -> bool:
    """Whether `installed` answers at once, with nothing to be read from disk."""
    return installed.cache_info().currsize > 0


@cache
def installed_file() -> Path | None:
    """The file with the installed data; None where it is installed without sources."""
    package = importlib.util.find_spec("genai_prices")
    file = Path(package.origin).with_name("data.py") if package and package.origin else None
    return file if file is not None and file.is_file() else None


@cache
def installed_digest() -> str:
    """SHA-256 of the installed data, known without importing it: the same on every machine that has this release."""
    file = installed_file()
    if file is not None:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    from genai_prices import data  # noqa: PLC0415 - installed without sources: only then it is read

    return hashlib.sha256(keepable(data.providers)).hexdigest()


def _folder() -> Path:
    import platformdirs  # noqa: PLC0415 - only where a file is looked for

    return platformdirs.user_cache_path("tokenmeter", appauthor=False)


def read_kept(name: str, digest: str) -> bytes | None:
    """What was kept under `name` of the data with this digest; None when there is nothing, or it was changed."""
    return _read_kept(name, digest)[1]


def _read_kept(name: str, digest: str) -> tuple[str, bytes | None]:
    """What stands in the file's name between `name` and the digest, and the content; of this user's own files only."""
    with suppress(OSError, RuntimeError):  # no home, or one that may not be read
        for file in _folder().glob(f"{name}-*{digest[:16]}-*.json"):
            content = file.read_bytes()
            own = not hasattr(os, "geteuid") or file.stat().st_uid == os.geteuid()
            if own and hashlib.sha256(content).hexdigest()[:16] == file.stem.rpartition("-")[2]:
                return file.stem.removeprefix(f"{name}-").partition(f"-{digest[:16]}")[0], content
    return "", None


def keep(kind: str, digest: str, content: bytes) -> None:
    """Keep what was made from the data with this digest, in one step. Where that cannot be done, nothing is kept."""
    name = f"{kind}-{digest[:16]}-{hashlib.sha256(content).hexdigest()[:16]}.json"
    import tempfile  # noqa: PLC0415 - once per release

    with suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(prefix=".kept-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(written).replace(folder / name)
        except BaseException:
            Path(written).unlink(missing_ok=True)
            raise
        family = kind.partition("-")[0]
        files = sorted(folder.glob(f"{family}-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in files[_MOST_FILES:]:
            old.unlink(missing_ok=True)
