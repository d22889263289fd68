"""genai-prices as a price list: data only, read lazily, one model at a time. The only reader of ``genai_prices``.

Neither its matching (prefix and containment clauses match models that do not exist yet) nor its arithmetic is used.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmeter.errors import PricingError
from tokenmeter.pricing.conversion import Launch, price_rows
from tokenmeter.pricing.matching import listed_names, undated
from tokenmeter.pricing.price import Price

if TYPE_CHECKING:
    from genai_prices import types as genai

__all__ = ["Catalog", "CatalogData", "CatalogModel"]


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


class CatalogData:
    """One edition of the data, with an index of the names each model goes by.

    Args:
        providers: Provider records.
        edition: What rows of it name as their source.
        digest: SHA-256 of the data.
    """

    def __init__(self, providers: Iterable[genai.Provider], *, edition: str, digest: str) -> None:
        self.providers: Mapping[str, genai.Provider] = {provider.id: provider for provider in providers}
        self.edition = edition
        self.digest = digest
        self._indexes: dict[str, Mapping[str, genai.ModelInfo]] = {}

    @classmethod
    def fetched(cls, url: str | None = None) -> CatalogData:
        """The newest edition, over the network.

        Args:
            url: Where to; default: where genai-prices publishes.

        Raises:
            PricingError: it cannot be fetched or read.
        """
        from genai_prices import UpdatePrices  # noqa: PLC0415 - only who asks for the network pays for its client

        try:
            snapshot = (UpdatePrices(url=url) if url else UpdatePrices()).fetch()
        except Exception as error:
            raise PricingError(f"The newest prices could not be fetched ({error}); the bundled ones remain.") from error
        if snapshot is None:
            raise PricingError("The newest prices could not be fetched; the bundled ones remain.")
        digest = hashlib.sha256(repr(snapshot.providers).encode()).hexdigest()
        return cls(snapshot.providers, edition=f"genai-prices {digest[:12]}", digest=digest)

    def index(self, provider: str) -> Mapping[str, genai.ModelInfo]:
        """Names -> models of one provider."""
        found = self._indexes.get(provider)
        if found is None:
            found = self._indexes[provider] = _index(provider, self.providers[provider].models)
        return found


class Catalog:
    """The price data as models with rows. Making one does not import the data; the first look-up does.

    Args:
        launches: Since when modes were sold that the data recorded later.
        data: The edition; None = the installed one.
    """

    def __init__(self, launches: Iterable[Launch] = (), *, data: CatalogData | None = None) -> None:
        self._launches = tuple(launches)
        self._data = data
        self._found: dict[tuple[str, str], CatalogModel] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of the data, known without importing it: the same data gives the same digest on every machine."""
        return self._data.digest if self._data else _installed_digest()

    @property
    def ready(self) -> bool:
        """Whether the data is imported; the first look-up takes half a second otherwise."""
        return self._data is not None or _installed.cache_info().currsize > 0

    def prepare(self) -> None:
        """Import the data."""
        if self._data is None:
            _installed()

    def find(self, provider: str, names: Iterable[str]) -> CatalogModel | None:
        """The model listed under the first of `names` that is listed, at `provider` or whose models it resells."""
        data = self._data or _installed()
        listed = data.providers.get(provider)
        if listed is None:
            return None
        wanted = tuple(names)
        for seller in (provider, *(listed.fallback_model_providers or ())):
            index = data.index(seller)
            for name in wanted:
                info = index.get(name)
                if info is not None:
                    return self._model(data, seller, info)
        return None

    def models(self) -> Iterator[CatalogModel]:
        """Every model listed. Converts the whole catalog."""
        data = self._data or _installed()
        for provider in data.providers.values():
            for info in provider.models:
                yield self._model(data, provider.id, info)

    def _model(self, data: CatalogData, provider: str, info: genai.ModelInfo) -> CatalogModel:
        key = (provider, info.id)
        found = self._found.get(key)
        if found is None:
            rows = tuple(price_rows(provider, info, self._launches, source=data.edition))
            found = self._found[key] = CatalogModel(provider, info.id, info.context_window, rows)
        return found


@cache
def _installed() -> CatalogData:
    from importlib.metadata import version  # noqa: PLC0415 - as below

    from genai_prices import data  # noqa: PLC0415 - half a second: paid by the first look-up, never by an import

    edition = f"genai-prices {version('genai-prices')}"
    return CatalogData(data.providers, edition=edition, digest=_installed_digest())


@cache
def _installed_digest() -> str:
    package = importlib.util.find_spec("genai_prices")
    file = Path(package.origin).with_name("data.py") if package and package.origin else None
    if file is not None and file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    from genai_prices import data as compiled  # noqa: PLC0415 - installed without sources: only then it is read

    return hashlib.sha256(repr(compiled.providers).encode()).hexdigest()


def _index(provider: str, models: list[genai.ModelInfo]) -> Mapping[str, genai.ModelInfo]:
    """Name -> model. An id beats a declared alias, which beats the stem of an open-ended clause."""
    index: dict[str, genai.ModelInfo] = {}
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
