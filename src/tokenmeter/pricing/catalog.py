"""genai-prices as a price list: data only, read lazily, one model at a time. The only reader of ``genai_prices``.

Neither its matching (prefix and containment clauses match models that do not exist yet) nor its arithmetic is used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmeter.pricing.conversion import Launch, price_rows
from tokenmeter.pricing.matching import listed_names, undated
from tokenmeter.pricing.price import Price

if TYPE_CHECKING:
    from genai_prices import types as genai

__all__ = ["Catalog", "CatalogModel"]


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that the catalog lists.

    Attributes:
        provider: Catalog provider whose rows these are (Azure's GPT models are listed under ``openai``).
        model: The catalog's id.
        context_window: Largest prompt in tokens; None when unknown.
        rows: Its prices.
    """

    provider: str
    model: str
    context_window: int | None
    rows: tuple[Price, ...]


class Catalog:
    """The installed genai-prices data. Importing this module does not import it; the first look-up does."""

    def __init__(self, launches: Iterable[Launch] = ()) -> None:
        self._launches = tuple(launches)
        self._found: dict[tuple[str, str], CatalogModel] = {}

    @property
    def version(self) -> str:
        """The installed version, without importing it."""
        return importlib.metadata.version("genai-prices")

    @property
    def digest(self) -> str:
        """SHA-256 of the data, without importing it: the same data gives the same digest on every machine."""
        return _digest(self.version)

    def find(self, provider: str, names: Iterable[str]) -> CatalogModel | None:
        """The model listed under the first of `names` that is listed, at `provider` or whose models it resells."""
        listed = _providers().get(provider)
        if listed is None:
            return None
        wanted = tuple(names)
        for source in (provider, *(listed.fallback_model_providers or ())):
            index = _index(source)
            for name in wanted:
                info = index.get(name)
                if info is not None:
                    return self._model(source, info)
        return None

    def models(self) -> Iterator[tuple[str, str]]:
        """Every (provider, model id) listed."""
        for provider in _providers().values():
            for info in provider.models:
                yield provider.id, info.id

    def get(self, provider: str, model: str) -> CatalogModel:
        """The model with exactly this id.

        Raises:
            KeyError: not listed.
        """
        return self._model(provider, next(i for i in _providers()[provider].models if i.id == model))

    def _model(self, provider: str, info: genai.ModelInfo) -> CatalogModel:
        key = (provider, info.id)
        found = self._found.get(key)
        if found is None:
            rows = tuple(price_rows(provider, info, self._launches, source=f"genai-prices {self.version}"))
            found = self._found[key] = CatalogModel(provider, info.id, info.context_window, rows)
        return found


@cache
def _providers() -> Mapping[str, genai.Provider]:
    from genai_prices import data  # noqa: PLC0415 - half a second: paid by the first look-up, never by an import

    return {provider.id: provider for provider in data.providers}


@cache
def _digest(version: str) -> str:
    package = importlib.util.find_spec("genai_prices")
    data = Path(package.origin).with_name("data.py") if package and package.origin else None
    content = data.read_bytes() if data and data.is_file() else version.encode()
    return hashlib.sha256(content).hexdigest()


# -- names


@cache
def _index(provider: str) -> Mapping[str, genai.ModelInfo]:
    """Name -> model. An id beats a declared alias, which beats the stem of an open-ended clause."""
    index: dict[str, genai.ModelInfo] = {}
    models = _providers()[provider].models
    for info in models:
        index.setdefault(info.id.lower(), info)
    for info in models:
        for name in _aliases(info.match, declared=True):
            index.setdefault(name, info)
    derived: dict[str, set[str]] = {}
    for info in models:
        for name in (*listed_names(provider, info.id.lower()), *_aliases(info.match, declared=False)):
            if name not in index or name in derived:
                index.setdefault(name, info)
                derived.setdefault(name, set()).add(info.id)
    for name, ids in derived.items():
        if len(ids) > 1 and not _same_prices(models, ids):
            del index[name]
    return index


def _same_prices(models: list[genai.ModelInfo], ids: set[str]) -> bool:
    """Whether it makes no difference which of several models a name means."""
    first, *others = (info.prices for info in models if info.id in ids)
    return all(prices == first for prices in others)


def _aliases(clause: Any, *, declared: bool) -> Iterator[str]:
    """Full names out of a match clause: what ``equals`` says, or the stem that an open-ended clause starts from."""
    for inner in (*getattr(clause, "or_", ()), *getattr(clause, "and_", ())):
        yield from _aliases(inner, declared=declared)
    if declared:
        name = getattr(clause, "equals", None)
        if name:
            yield name.lower()
        return
    for kind in ("starts_with", "contains", "ends_with"):
        text = getattr(clause, kind, None)
        if text:
            stem = text.lower().strip("-@:/.")
            yield stem
            if shorter := undated(stem):
                yield shorter
