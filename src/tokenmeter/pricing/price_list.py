"""The effective price list: the user's rows over the project's over tokenmeter's own over genai-prices."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenmeter.errors import ConfigurationError
from tokenmeter.pricing.card import RateCard
from tokenmeter.pricing.catalog import Catalog, forms
from tokenmeter.pricing.price import EVERY_MODEL, Price
from tokenmeter.pricing.rules import Overrides, load_overrides
from tokenmeter.providers.hosts import canonical_provider

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tokenmeter.pricing.edition import Edition

_MOST_KEPT = 10_000


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

    @property
    def ready(self) -> bool:
        """Whether a look-up answers at once, with nothing to be read from disk."""
        return self._catalog is None or self._catalog.ready

    def prepare(self) -> None:
        """Read from disk what the first look-up would read."""
        if self._catalog is not None:
            self._catalog.prepare()

    @property
    def own_rows(self) -> tuple[Price, ...]:
        """The rows laid over the catalog: the user's, the project's and the shipped overrides."""
        return (*self._own_rows, *(self._overrides.prices if self._overrides else ()))

    @property
    def rows(self) -> Iterator[Price]:
        """Every row of every layer, the strongest layer first. Converts the whole catalog."""
        yield from self.own_rows
        if self._catalog:
            for listed in self._catalog.models():
                yield from listed.rows

    def find(self, provider: str, model: str | None, region: str | None = None) -> ListedModel | None:
        """The model that `model` names at `provider`, strictly; None when no rule explains the name.

        Args:
            provider: Provider id or one of its other names (``bedrock``, ``vertex``).
            model: Name as the caller or the provider wrote it.
            region: ``"global"`` where a Bedrock name does not say itself.
        """
        if not model:
            return None
        key = (provider, model, "global" if region == "global" else None)
        try:
            return self._found[key]
        except KeyError:
            if len(self._found) >= _MOST_KEPT:  # names may come from strangers
                self._found.clear()
            found = self._found[key] = self._resolve(canonical_provider(provider), model, key[2])
            return found

    def _rows_of(self, provider: str, model: str) -> list[Price]:
        """The rows laid over the catalog for one model, the user's first."""
        shipped = self._overrides.rows_of(provider, model) if self._overrides else ()
        return [*self._layered.get((provider, model), ()), *shipped]

    def _resolve(self, provider: str, name: str, region: str | None) -> ListedModel | None:
        names = tuple(forms(provider, name, region))
        aliases = self._overrides.aliases.get(provider, {}) if self._overrides else {}
        names += tuple(aliases[each] for each in names if each in aliases)
        listed = self._catalog.find(provider, names) if self._catalog else None
        keys = [(provider, each) for each in names if each != EVERY_MODEL]
        if listed is not None:
            keys += [(provider, listed.model.lower()), (listed.provider, listed.model.lower())]
        rows = [row for key in dict.fromkeys(keys) for row in self._rows_of(*key)]
        if not rows and listed is None:
            return None
        sellers = dict.fromkeys((provider, listed.provider if listed else provider))
        rows += [row for seller in sellers for row in self._rows_of(seller, EVERY_MODEL)]
        model = listed.model if listed else rows[0].model
        card = RateCard(
            provider,
            model,
            (*rows, *(listed.rows if listed else ())),
            self._overrides.rules if self._overrides else (),
            name=name,
            assumed_before=self._overrides.moved.get((provider, name.lower())) if self._overrides else None,
        )
        limit = self._overrides.max_output_tokens(model.lower()) if self._overrides else None
        return ListedModel(provider, model, name, card, listed.context_window if listed else None, limit)


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
        raise ConfigurationError(f"The price file {path} cannot be read ({error}); check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The price file {path} is no valid TOML: {error}.") from error
    return parse_prices(raw.get("prices", ()), file=str(path), origin="project", lines=table_lines(text, "prices"))
