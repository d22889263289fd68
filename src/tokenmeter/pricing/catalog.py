"""The base data as models with rows: which model a name is listed as, converted one model at a time.

genai-prices' own matching (prefix and containment clauses match models that do not exist yet) and arithmetic are not
used.

Which model a name means is decided strictly: a wrong match is a wrong bill, so a name that no rule below explains is
unknown. A name matches when it is an id or a declared alias of the price list, or becomes one by taking away

- a snapshot's date: ``-2025-08-07``, ``-20250807``, ``@20250807`` (a date that exists), ``@default``, ``-latest``;
- a cloud's envelope: Bedrock's ``us.``/``eu.``/``global.`` profile, ``anthropic.`` vendor, ``-v1:0`` version and ARN,
  Google's ``publishers/.../models/`` path, ``-001`` release and ``-preview-05-20`` stage.

Never by prefix or containment: ``claude-opus-4-10`` is not ``claude-opus-4-1``.
"""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from tokenmeter.pricing import edition
from tokenmeter.pricing.conversion import Launch, price_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenmeter.pricing.edition import Edition, Record
    from tokenmeter.pricing.price import Price


class CatalogModel(NamedTuple):
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


class _Seller:
    """A provider's record, with an index of the names each model goes by."""

    def __init__(self, record: Record) -> None:
        self.models: Sequence[Record] = record["models"]
        self.fallbacks: Sequence[str] = record.get("fallback_model_providers") or ()
        self.index = _index(record["id"], self.models)


class Catalog:
    """The price data as models with rows. Making one reads nothing; the first look-up does.

    Args:
        launches: Since when modes were sold that the data recorded later.
        data: The edition; None = the installed one.
    """

    def __init__(self, launches: Iterable[Launch] = (), *, data: Edition | None = None) -> None:
        self._launches = tuple(launches)
        self._data = data
        self._sellers: dict[str, _Seller] = {}
        self._found: dict[tuple[str, str], CatalogModel] = {}

    @property
    def edition(self) -> Edition:
        """The data."""
        if self._data is None:
            self._data = edition.installed()
        return self._data

    @property
    def digest(self) -> str:
        """SHA-256 of the data, known without reading it in: the same data gives the same digest on every machine."""
        return self._data.digest if self._data else edition.installed_digest()

    @property
    def ready(self) -> bool:
        """Whether the first look-up answers at once, with nothing to be read from disk."""
        return self._data is not None or edition.is_read()

    def prepare(self) -> None:
        """Read what the first look-up would read."""
        _ = self.edition

    def find(self, provider: str, names: Iterable[str]) -> CatalogModel | None:
        """The model listed under the first of `names` that is listed, at `provider` or whose models it resells."""
        if provider not in self.edition:
            return None
        wanted = tuple(names)
        for each in (provider, *self._seller(provider).fallbacks):
            index = self._seller(each).index
            for name in wanted:
                record = index.get(name)
                if record is not None:
                    return self._model(each, record)
        return None

    def models(self, provider: str | None = None) -> Iterator[CatalogModel]:
        """Every model listed, or those of one provider; empty for one that is not listed."""
        for each in self.edition if provider is None else (provider,):
            if each in self.edition:
                for record in self._seller(each).models:
                    yield self._model(each, record)

    def _seller(self, provider: str) -> _Seller:
        found = self._sellers.get(provider)
        if found is None:
            found = self._sellers[provider] = _Seller(self.edition.provider(provider))
        return found

    def _model(self, provider: str, record: Record) -> CatalogModel:
        key = (provider, record["id"])
        found = self._found.get(key)
        if found is None:
            rows = tuple(price_rows(provider, record, self._launches, source=self.edition.name))
            found = self._found[key] = CatalogModel(provider, record["id"], record.get("context_window"), rows)
        return found


def _index(provider: str, models: Sequence[Record]) -> Mapping[str, Record]:
    """Name -> model. An id beats a declared alias, which beats the stem of an open-ended clause."""
    index: dict[str, Record] = {}
    for record in models:
        index.setdefault(record["id"].lower(), record)
    for record in models:
        for name in _aliases(record["match"], declared=True):
            index.setdefault(name, record)
    derived: dict[str, set[str]] = {}
    for record in models:
        for name in (*listed_names(provider, record["id"].lower()), *_aliases(record["match"], declared=False)):
            if name not in index or name in derived:
                index.setdefault(name, record)
                derived.setdefault(name, set()).add(record["id"])
    for name, ids in derived.items():
        if len(ids) > 1 and not _same_prices(models, ids):
            del index[name]
    return index


def _same_prices(models: Sequence[Record], ids: set[str]) -> bool:
    """Whether it makes no difference which of several models a name means."""
    first, *others = (record["prices"] for record in models if record["id"] in ids)
    return all(prices == first for prices in others)


def _aliases(clause: Record, *, declared: bool) -> Iterator[str]:
    """Full names out of a match clause: what ``equals`` says, or the stem that an open-ended clause starts from."""
    for inner in (*clause.get("or", ()), *clause.get("and", ())):
        yield from _aliases(inner, declared=declared)
    if declared:
        if "equals" in clause:
            yield clause["equals"].lower()
        return
    for kind in ("starts_with", "contains", "ends_with"):
        if kind in clause:
            stem = clause[kind].lower().strip("-@:/.")
            yield stem
            if shorter := undated(stem):
                yield shorter


_DATE = re.compile(r"[-@:](20\d\d)(-?)(\d\d)\2(\d\d)$")
_FINE_TUNED = re.compile(r"(ft:[^:]+):")
_FLOATING = re.compile(r"(?:-latest|@latest|@default)$")
_BEDROCK_VERSION = re.compile(r"-v\d+(?::\d+)?(?::\d+k)?$|:\d+$")
_BEDROCK_PROFILE = re.compile(r"(?:(global)|regional|us-gov|us|eu|apac|jp|au|ca|in|sa|me|af|il|uk|kr)\.(?=[a-z0-9]+\.)")
_GOOGLE_STAGE = re.compile(r"(?:-preview)?-(?:0[1-9]|1[0-2])-(?:[0-3]\d|20\d\d)$|-preview$|-0\d\d$")


def undated(name: str) -> str | None:
    """`name` without its snapshot date or ``-latest``; None when it has none."""
    if floating := _FLOATING.search(name):
        return name[: floating.start()]
    found = _DATE.search(name)
    if found is None:
        return None
    try:
        date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        return None
    return name[: found.start()]


def forms(provider: str, name: str, region: str | None = None) -> Iterator[str]:
    """The names that `name` may be listed under at `provider`, the most literal first.

    Args:
        provider: Canonical provider id.
        name: The model as the provider or the caller names it.
        region: ``"global"`` prefers Bedrock's global rows for a name that does not say.
    """
    seen: set[str] = set()
    for form in _forms(provider, name.strip().lower(), region):
        if form and form not in seen:
            seen.add(form)
            yield form


def _forms(provider: str, name: str, region: str | None) -> Iterator[str]:
    if provider == "aws":
        yield from _bedrock_forms(name.rsplit("/", 1)[-1], region)
        return
    yield name
    if provider == "google":
        name = name.rsplit("/", 1)[-1]
        yield name
    yield from _snapshots((name,))
    if tuned := _FINE_TUNED.match(name):
        yield tuned[1]
        yield from _snapshots((tuned[1],))
        yield tuned[1].rpartition("-")[0]  # ft:gpt-3.5-turbo-0125
    if provider == "google" and not name.startswith("claude"):
        stage = _GOOGLE_STAGE.search(name)
        if stage:
            yield name[: stage.start()]


def _snapshots(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        shorter = undated(name)
        if shorter:
            yield shorter


def _bedrock_forms(name: str, region: str | None) -> Iterator[str]:
    profile = _BEDROCK_PROFILE.match(name)
    bare = name[profile.end() :] if profile else name
    versionless = _BEDROCK_VERSION.sub("", bare)
    names = list(dict.fromkeys((bare, versionless)))
    if "." not in bare.split("-")[0]:  # Anthropic's own client answers without the vendor
        names = [vendor + each for vendor in ("anthropic.", "openai.") for each in names] + names
    if profile and profile[1]:
        scopes: tuple[str, ...] = ("global.",)
    elif region == "global" and not profile:
        scopes = ("global.", "regional.", "")
    else:
        scopes = ("regional.", "")
    for scope in scopes:
        for each in names:
            yield scope + each
            yield from _snapshots((scope + each,))


def listed_names(provider: str, identity: str) -> Iterator[str]:
    """Further names a listed id answers to: Bedrock ids without version and date, where that is unambiguous."""
    if provider == "aws":
        versionless = _BEDROCK_VERSION.sub("", identity)
        yield versionless
        yield from _snapshots((versionless,))
