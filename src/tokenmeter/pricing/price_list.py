"""The effective price list: the user's rows over the project's over tokenmeter's own over genai-prices."""

from __future__ import annotations

import difflib
import hashlib
import json
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenmeter.errors import ConfigurationError, reason_of, shown
from tokenmeter.pricing import edition
from tokenmeter.pricing.card import RateCard
from tokenmeter.pricing.edition import Launch, price_rows, unknown_terms
from tokenmeter.pricing.names import forms, listed_names, scope_of, undated
from tokenmeter.pricing.price import EVERY_MODEL, TOKEN_CLASSES, Price
from tokenmeter.pricing.rules import Overrides, load_overrides
from tokenmeter.providers.hosts import canonical_provider, names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenmeter.pricing.edition import Edition, Record


_MOST_KEPT = 10_000
#: How much a name has in common with the one that it is a slip for.
_ALIKE = 0.8


class ListedModel(NamedTuple):
    """What the price list knows of a model.

    Attributes:
        provider: Canonical provider id of the call.
        model: Listed id.
        name: The name it was asked for by.
        card: Its prices.
        context_window: Largest prompt in tokens; None when unknown.
        max_output_tokens: Largest answer in tokens; None when unknown.
    """

    provider: str
    model: str
    name: str
    card: RateCard
    context_window: int | None = None
    max_output_tokens: int | None = None


class PriceList:
    """Every price in force, by layer. Make one with `PriceList.load`.

    Args:
        rows: Rows stronger than the shipped ones (the user's, the project's).
        overrides: What the catalog lacks; None = nothing.
        catalog: The base; None = no base: only `rows` and `overrides` count.
    """

    def __init__(
        self, rows: Iterable[Price] = (), *, overrides: Overrides | None = None, catalog: Catalog | None = None
    ) -> None:
        self._own_rows = tuple(rows)
        self._overrides = overrides
        self._catalog = catalog
        self._layered: dict[tuple[str, str], list[Price]] = {}
        for row in self._own_rows:
            self._layered.setdefault((row.provider, row.model), []).append(row)
        self._found: dict[tuple[str, str, str | None], ListedModel | None] = {}

    @classmethod
    def load(
        cls,
        user_rows: Iterable[Price | Mapping[str, Any]] = (),
        user_file: str | Path | None = None,
        *,
        newest: Edition | None = None,
    ) -> PriceList:
        """The price list in force: the shipped one under the user's rows.

        Args:
            user_rows: Rows from the configuration, parsed or as decoded TOML tables.
            user_file: A TOML file of ``[[prices]]`` tables (the project's layer, weaker than `user_rows`).
            newest: Another edition of the base data than the installed one (see `tokenmeter.prices.update`).

        Raises:
            ConfigurationError: the file cannot be read or a row is bad.
        """
        rows = [each for number, row in enumerate(user_rows, start=1) for each in _parsed(row, number)]
        if user_file is not None:
            rows.extend(_read(Path(user_file)))
        overrides = load_overrides()
        return cls(rows, overrides=overrides, catalog=Catalog(overrides.launches, data=newest))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over everything that decides a price; stable over processes and machines, 64 hex digits."""
        digest = hashlib.sha256()
        digest.update((self._catalog.digest if self._catalog else "").encode())
        digest.update((self._overrides.text if self._overrides else "").encode())
        for row in self._own_rows:
            digest.update(json.dumps(row.to_dict(), sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def base(self) -> str:
        """SHA-256 of the edition of the catalog that lies under everything; empty for none."""
        return self._catalog.digest if self._catalog else ""

    @property
    def base_name(self) -> str:
        """Name of that edition, for example ``genai-prices 0.2.3``. Reads it."""
        return self._catalog.edition.name if self._catalog else "none"

    def unread_terms(self) -> Mapping[str, Sequence[str]]:
        """Keys of that edition's prices that nobody here can read -> models (``openai/gpt-5``) that have them."""
        found: dict[str, list[str]] = {}
        if self._catalog is None:
            return found
        data = self._catalog.edition
        for provider in data:
            for record in data.provider(provider)["models"]:
                for term in sorted(unknown_terms(record)):
                    found.setdefault(term, []).append(f"{provider}/{record['id']}")
        return found

    @property
    def ready(self) -> bool:
        """Whether a look-up answers at once, with nothing to be read from disk."""
        return self._catalog is None or self._catalog.ready

    def prepare(self) -> None:
        """Read from disk what the first look-up would read."""
        if self._catalog is not None:
            self._catalog.prepare()

    @cached_property
    def own_rows(self) -> tuple[Price, ...]:
        """The rows laid over the catalog: the user's, the project's and the shipped overrides."""
        return (*self._own_rows, *(self._overrides.prices if self._overrides else ()))

    @property
    def rows(self) -> Iterator[Price]:
        """Every row of every layer, the strongest layer first. Converts the whole catalog."""
        return self.rows_of(None)

    def rows_of(self, provider: str | None) -> Iterator[Price]:
        """As `rows`, of one provider; None = of all."""
        yield from (row for row in self.own_rows if provider in {None, row.provider})
        if self._catalog:
            for listed in self._catalog.models(provider):
                yield from listed.rows

    def find(self, provider: str, model: str | None, region: str | None = None) -> ListedModel | None:
        """The model that `model` names at `provider`, strictly; None when no rule explains the name.

        Args:
            provider: Provider id or one of its other names (``bedrock``, ``vertex``).
            model: Name as the caller or the provider wrote it.
            region: Where a Bedrock name does not say itself.
        """
        if not model:
            return None
        key = (provider, model, scope_of(region))
        try:
            return self._found[key]
        except KeyError:
            if len(self._found) >= _MOST_KEPT:  # names may come from strangers
                self._found.clear()
            found = self._found[key] = self._resolve(canonical_provider(provider), model, key[2])
            return found

    def every_model(self, provider: str) -> ListedModel | None:
        """What `provider` sells whichever model asks for it, hosted tools above all; None for nothing."""
        seller = canonical_provider(provider)
        key = (seller, "", None)
        if key not in self._found:
            rows = self._rows_of(seller, EVERY_MODEL)
            card = RateCard(seller, EVERY_MODEL, rows, self._overrides.rules if self._overrides else ())
            self._found[key] = ListedModel(seller, EVERY_MODEL, EVERY_MODEL, card) if rows else None
        return self._found[key]

    def sells(self, provider: str) -> bool:
        """Whether any price is `provider`'s."""
        seller = canonical_provider(provider)
        own = any(row.provider == seller for row in self.own_rows)
        return own or (self._catalog is not None and any(True for _ in self._catalog.ids(seller)))

    def nearest_provider(self, name: str) -> str | None:
        """The provider that an unknown name is a slip for; a known one with something before or after it is none."""
        name, known = name.strip().lower(), names()
        near = None if name in known else next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)), None)
        return None if near is None or near in name or self.sells(name) else near

    def refuse_slip(self, provider: str, where: str = "") -> None:
        """Refuse the name of a provider that is a slip for another's.

        Raises:
            ConfigurationError: says who is probably meant; `where` stands before it.
        """
        if meant := self.nearest_provider(provider):
            asked = f"{where}who" if where else "Who"
            raise ConfigurationError(
                f"{asked} is {shown(provider)}? Did you mean {meant!r}? Rows in `prices` may name others."
            )

    def nearest(self, provider: str, model: str) -> str | None:
        """The listed id that `model` may be a slip of; a suggestion to people, never a price."""
        near = difflib.get_close_matches(model.lower(), self._ids(canonical_provider(provider)), n=1, cutoff=_ALIKE)
        return near[0] if near else None

    def knows(self, provider: str | None, model: str, *, pattern: bool = False) -> bool:
        """Whether a model with a price at `provider` (None = at anybody) goes by a name, or by a `pattern` of names."""
        known = {canonical_provider(name) for name in names()} | {row.provider for row in self.own_rows}
        sellers = known if provider is None else {canonical_provider(provider)}
        if not pattern or "*" not in model:
            return any(self.find(seller, model) for seller in sellers)
        begin = model.lower().partition("*")[0]
        # A pattern of dated names begins with the name that is listed.
        return any(
            fnmatchcase(listed, model.lower()) or begin.startswith(listed)
            for seller in sellers
            for listed in self._ids(seller)
        )

    def _ids(self, seller: str) -> set[str]:
        """The models with a price at `seller`, as they are listed."""
        own = (row.model for row in self.own_rows if row.provider == seller and row.model != EVERY_MODEL)
        return {*own, *(self._catalog.ids(seller) if self._catalog else ())}

    def _rows_of(self, provider: str, model: str) -> list[Price]:
        """The rows laid over the catalog for one model, the user's first."""
        shipped = self._overrides.rows_of(provider, model) if self._overrides else ()
        return [*self._layered.get((provider, model), ()), *shipped]

    def _resolve(self, provider: str, name: str, region: str | None) -> ListedModel | None:
        names = tuple(forms(provider, name, region))
        aliases = self._overrides.aliases.get(provider, {}) if self._overrides else {}
        names += tuple(aliases[each] for each in names if each in aliases)
        listed = self._catalog.find(provider, names) if self._catalog else None
        if listed is not None:
            names += (listed.model.lower(),)
        names = tuple(dict.fromkeys(each for each in names if each != EVERY_MODEL))
        rows = [row for each in names for row in self._rows_of(provider, each)]
        if listed is not None and listed.provider != provider:
            if any(row.origin == "tokenmeter" and row.sku_meter == "input" for row in rows):
                listed = listed._replace(rows=())  # it is sold at a price of its own, which leaves the maker's none
            else:
                literal = names[: names.index(listed.model.lower()) + 1]
                rows += [row for each in literal for row in self._rows_of(listed.provider, each)]
        if not rows and listed is None and not self._prices_tokens_of_every_model(provider):
            return None
        sellers = dict.fromkeys((provider, listed.provider if listed else provider))
        rows += [row for seller in sellers for row in self._rows_of(seller, EVERY_MODEL)]
        model = listed.model if listed else rows[0].model
        if model == EVERY_MODEL:
            model = name
        card = RateCard(
            provider,
            model,
            (*rows, *(listed.rows if listed else ())),
            self._overrides.rules if self._overrides else (),
            name=name,
            names=names,
            doubted=self._overrides.doubts.get((provider, name.lower())) if self._overrides else None,
        )
        limit = self._overrides.max_output_tokens(model.lower()) if self._overrides else None
        return ListedModel(provider, model, name, card, listed.context_window if listed else None, limit)

    def _prices_tokens_of_every_model(self, provider: str) -> bool:
        """Whether the user says what tokens cost at `provider`, whatever its models are called."""
        return any(row.sku_meter in TOKEN_CLASSES for row in self._layered.get((provider, EVERY_MODEL), ()))


def _parsed(row: Price | Mapping[str, Any], number: int) -> tuple[Price, ...]:
    if isinstance(row, Price):
        return (row,)
    from tokenmeter.pricing.parse import parse_prices  # noqa: PLC0415 - only where rows are still to be parsed

    return parse_prices((row,), file=f"prices (row {number})")


def _read(path: Path) -> tuple[Price, ...]:
    import tomllib  # noqa: PLC0415 - as below

    from tokenmeter.pricing.parse import parse_prices, table_lines  # noqa: PLC0415 - only where there is a price file

    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        reason = reason_of(error)
        raise ConfigurationError(f"The price file {path} cannot be read: {reason}. Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The price file {path} is no valid TOML: {error}.") from error
    return parse_prices(raw.get("prices", ()), file=str(path), origin="project", lines=table_lines(text, "prices"))


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


#: Who sells whose models at other prices than their maker, whatever the catalog says: Microsoft's prices of DeepSeek's
#: models are several times DeepSeek's own, know no hours of day, and are rows of ``overrides.toml``.
_SOLD_APART = frozenset({("azure", "deepseek")})


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
        for each in (provider, *self._makers(provider)):
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

    def ids(self, provider: str) -> Iterator[str]:
        """The ids of a provider's models, as they are listed; none for a provider that is not."""
        if provider in self.edition:
            yield from (record["id"] for record in self._seller(provider).models)

    def _makers(self, provider: str) -> Iterator[str]:
        """Whose models `provider` resells at their makers' prices."""
        return (each for each in self._seller(provider).fallbacks if (provider, each) not in _SOLD_APART)

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
