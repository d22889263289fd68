"""Newer price lists than the installed one: fetched, checked, kept. Nothing that looks wrong replaces what is good.

A list is what genai-prices publishes: a JSON array of providers. It is kept in the user's data directory, or wherever
the user says, and beside it a note of when it was last looked for and what came of it. `Refresher` looks once a day, in
a thread of its own.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import urllib.error
import urllib.request
import weakref
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, PricingError, StoreUnavailableError, reason_of
from tokenmeter.money import EXACT
from tokenmeter.paths import expand, user_folder
from tokenmeter.patience import wait_for
from tokenmeter.pricing.edition import Edition, Record, installed, installed_file
from tokenmeter.pricing.price import Conditions
from tokenmeter.pricing.price_list import Catalog, PriceList
from tokenmeter.pricing.pricer import Pricer
from tokenmeter.pricing.rules import load_overrides
from tokenmeter.processes import after_fork_in_child
from tokenmeter.providers.wire import is_object

log = logging.getLogger("tokenmeter")

#: Where genai-prices publishes its data as it grows.
PUBLISHED = "https://raw.githubusercontent.com/pydantic/genai-prices/refs/heads/main/prices/new_data/v2/data.json"
DAY = 86_400
_RETRY = 3_600
_TIMEOUT = 15
_LONGEST = 120
_MOST_BYTES = 1 << 26
#: A list with fewer models than this part of the present one's lost something on its way.
_LEAST_PART = (4, 5)
_MUST_STAY = ("anthropic", "aws", "google", "openai")
#: A price of theirs that differs from the present one by this factor is taken for one of another unit.
_TOO_FAR = Decimal(100)
#: Provider -> (model, meter, conditions) -> US dollars per unit.
_Prices = dict[str, dict[tuple[str, str, Conditions], Decimal]]
#: Models of one kind that a message names.
_NAMED = 3
_ALWAYS = datetime.min.replace(tzinfo=UTC)
#: US dollars per unit of sale above which a price is a slip: no provider sells a million tokens for so much.
_MOST_PRICE = 100_000


def kept_path() -> Path:
    """Where a fetched list is kept unless the user names a place.

    Raises:
        ConfigurationError: the user has no home directory, and so no such place.
    """
    try:
        return user_folder("data", "name the file of the price list in place of 'auto'") / "prices.json"
    except StoreUnavailableError as error:
        raise ConfigurationError(str(error)) from error


def read_list(path: str | Path) -> Edition:
    """A list from a file, as published or as kept.

    Raises:
        PricingError: it cannot be read, or is no price list.
    """
    try:
        return Edition.parse(_unpacked(expand(path).read_bytes(), str(path)))
    except OSError as error:
        raise PricingError(f"The price list {path} cannot be read: {reason_of(error)}. Check the path.") from error


def fetch(source: str | Path | None = None) -> Edition:
    """The list at a URL (default: where genai-prices publishes) or in a file. Only this function uses the network.

    Raises:
        PricingError: it cannot be fetched, or is no price list.
    """
    where = str(source or PUBLISHED)
    if "://" not in where:
        return read_list(where)
    if not where.startswith(("https://", "http://")):
        raise PricingError(f"A price list is fetched by https or http, or read from a file; {where} is neither.")
    request = urllib.request.Request(where, headers={"User-Agent": "tokenmeter", "Accept": "application/json"})  # noqa: S310 - checked above
    try:
        content = wait_for(lambda _: _fetched(where, request), _LONGEST)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise PricingError(f"The price list at {where} could not be fetched: {reason_of(error)}.") from error
    return Edition.parse(_unpacked(content, where))


def _fetched(where: str, request: urllib.request.Request) -> bytes:
    """The whole answer, of which there may be more than of any list, by one byte.

    Raises:
        PricingError: somebody else would answer, where others can read along, or less comes than was announced.
    """
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - checked by who asks
        if where.startswith("https://") and not answer.url.startswith("https://"):
            raise PricingError(f"{where} led to {answer.url}, which is not https; nothing was fetched.")
        content: bytes = answer.read(_MOST_BYTES + 1)
        if answer.length and len(content) <= _MOST_BYTES:  # a read of so many at most is content with fewer
            raise PricingError(f"The price list at {where} breaks off {answer.length} bytes before its end.")
    return content


def _unpacked(content: bytes, where: str) -> bytes:
    """What was read, out of gzip where it is packed: some servers do so unasked, and files are carried about so.

    Raises:
        PricingError: it is larger than any list, or packed badly.
    """
    if content.startswith(b"\x1f\x8b"):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            content = unpacker.decompress(content, _MOST_BYTES + 1)
        except zlib.error as error:
            raise PricingError(f"The price list {where} is packed badly ({error}).") from error
        if not unpacker.eof and len(content) <= _MOST_BYTES:
            raise PricingError(f"The price list {where} breaks off in the middle.")
    if len(content) > _MOST_BYTES:
        raise PricingError(f"The price list {where} is larger than {_MOST_BYTES >> 20} MiB: none is.")
    return content


def check(newer: Edition, than: Edition | None = None) -> None:
    """Refuse a list that cannot be right.

    Args:
        newer: The list.
        than: The list it would replace; default: the installed one.

    Raises:
        PricingError: a price is no amount or that of another unit, a large provider is missing, or the list shrank;
            says which.
    """
    offered, present = _priced(newer), _priced(than or installed())
    counts, before = _count(offered), _count(present)
    most, whole = _LEAST_PART
    gone = [name for name in _MUST_STAY if name in before and counts.get(name, 0) * whole < before[name] * most]
    if gone:
        raise PricingError(f"The price list lost {', '.join(gone)} or many of their models; the present one is kept.")
    if sum(counts.values()) * whole < sum(before.values()) * most:
        raise PricingError(
            f"The price list has prices for {sum(counts.values())} models, the present one has them for "
            f"{sum(before.values())}; the present one is kept."
        )
    for provider in _MUST_STAY:
        for sold, price in offered.get(provider, {}).items():
            was = present.get(provider, {}).get(sold)
            if was and price and not EXACT.divide(was, _TOO_FAR) < price < EXACT.multiply(was, _TOO_FAR):
                raise PricingError(
                    f"The price list has {sold[1]} of {provider}/{sold[0]} at ${price:f} a unit, the present one at "
                    f"${was:f}: one of them means another unit. The present one is kept; if it is the one that is "
                    "wrong, give the price in a row of your own ([[prices]]) or upgrade tokenmeter."
                )


def _count(priced: _Prices) -> dict[str, int]:
    """Provider -> models that cost something."""
    return {provider: len({model for (model, *_), price in rows.items() if price}) for provider, rows in priced.items()}


def _priced(edition: Edition) -> _Prices:
    """The latest price of everything that is sold; every price is looked at, as a call would."""
    catalog, priced = Catalog(load_overrides().launches, data=edition), _Prices()
    for provider in edition:
        try:
            for record in edition.provider(provider)["models"]:
                _refuse_impossible(provider, record)
            for listed in catalog.models(provider):
                latest = priced.setdefault(provider, {})
                for row in sorted(listed.rows, key=lambda row: row.effective_from or _ALWAYS):
                    latest[row.model, row.sku_meter, row.conditions] = row.per_unit
            catalog.find(provider, ("no model",))  # which asks whom it resells, too
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise PricingError(f"The price list has a record of {provider} that cannot be read ({error!r}).") from error
    return priced


def _refuse_impossible(provider: str, record: Record) -> None:
    """Refuse a model's record whose prices are no amounts, or not there.

    Raises:
        PricingError: a price is below zero, endless or too high, or there is none.
        ArithmeticError, LookupError, TypeError, ValueError: the record cannot be read.
    """
    prices: Any = record["prices"]
    dated: list[Any] = [{"prices": prices}] if isinstance(prices, dict) else prices
    window: Any = record.get("context_window", 0)
    if not dated or isinstance(window, bool) or int(window) != window:
        raise ValueError(f"no prices, or no context window, of {record['id']}")
    values = [value for each in (*dated, *(record.get("price_variants") or ())) for value in each["prices"].values()]
    if not all(isinstance(step, str | int | Decimal) and _may_be(step) for value in values for step in _steps(value)):
        raise PricingError(f"The price list has an impossible price for {provider}/{record['id']}.")


def _steps(value: Any) -> list[Any]:
    """A price, or those of all its tiers."""
    return [value["base"], *(tier["price"] for tier in value["tiers"])] if is_object(value) else [value]


def _may_be(price: str | int | Decimal) -> bool:
    return not isinstance(price, bool) and 0 <= Decimal(price) <= _MOST_PRICE


def describe_unread(listed: PriceList) -> str:
    """What of a list's prices nobody here can read, in words; empty for a list that is read whole."""
    unread = listed.unread_terms()
    if not unread:
        return ""
    named = "; ".join(f"{key} ({_some(models)})" for key, models in unread.items())
    many = counted(len(unread), "key that is not known here and is", "keys that are not known here and are")
    return (
        f"The price list has {many} left out: {named}. Calls of such a model may cost more than is "
        "recorded: upgrade tokenmeter, or give its prices in rows of your own ([[prices]])."
    )


def _some(models: Sequence[str]) -> str:
    more = len(models) - _NAMED
    return ", ".join(models[:_NAMED]) + (f" and {counted(more, 'more', 'more')}" if more > 0 else "")


def keep(edition: Edition, path: Path) -> None:
    """Write a list in one step: a reader finds the one before or this one, never half of one.

    Raises:
        PricingError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(edition.content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        Looked(datetime.now(UTC), None, edition.digest).write(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise PricingError(
            f"The price list could not be kept at {path}: {reason_of(error)}. Name another place."
        ) from error


def newest(path: Path | None = None) -> Edition | None:
    """The kept list, if it is later than the installed data; None otherwise, and when it cannot be read or is bad.

    Args:
        path: Where it is kept; default: `kept_path`.
    """
    path, shipped = path or kept_path(), installed_file()
    try:
        if shipped is not None and path.stat().st_mtime <= shipped.stat().st_mtime:
            return None
        return _unchanged(path) or read_list(path)
    except FileNotFoundError:
        return None
    except (OSError, PricingError) as error:
        log.warning("the kept price list is left aside: %s", error)
        return None


def _unchanged(path: Path) -> Edition | None:
    """The kept list, read without a second look at it, if it is still what was checked and kept."""
    edition, looked = Edition(path.read_bytes()), Looked.read(path)
    return edition if looked is not None and looked.digest == edition.digest else None


class Looked(NamedTuple):
    """When a newer list was last looked for, and what came of it.

    Attributes:
        at: The moment, aware UTC.
        fault: Why none was kept; None when one was.
        digest: SHA-256 of the list that was last checked and kept.
    """

    at: datetime
    fault: str | None = None
    digest: str | None = None

    @classmethod
    def read(cls, path: Path) -> Looked | None:
        """What is noted beside the list at `path`; None for nothing."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            noted: dict[str, Any] = json.loads(_note(path).read_text(encoding="utf-8"))
            return cls(datetime.fromisoformat(noted["at"]), noted["fault"], noted["digest"])
        return None

    def write(self, path: Path) -> None:
        """Note it beside the list at `path`; where that cannot be done, nothing is noted."""
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            _note(path).write_text(json.dumps({**self._asdict(), "at": self.at.isoformat()}), encoding="utf-8")


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".looked")


class Refresher:
    """Looks for a newer list once a day and has a pricer adopt it. All in a daemon thread; nothing is raised.

    Args:
        pricer: Whose list is kept fresh, for as long as it is in use.
        load: Makes a price list out of an edition.
        source: URL; default: where genai-prices publishes.
        path: Where the list is kept; default: `kept_path`.
    """

    def __init__(
        self,
        pricer: Pricer,
        load: Callable[[Edition], PriceList],
        *,
        source: str | None = None,
        path: Path | None = None,
    ) -> None:
        self._pricer = weakref.ref(pricer, lambda _: self.stop())
        self._load = load
        self._source = source
        self._path = path or kept_path()
        self._stop = threading.Event()
        _all.add(self)

    def start(self) -> None:
        """Begin to look."""
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(self._stop,), name="tokenmeter-prices", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        _all.discard(self)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set() and self._pricer() is not None:
            try:
                self.look()
            except Exception:
                log.warning("prices could not be refreshed; the present ones remain in use", exc_info=True)
            stop.wait(_RETRY)

    def look(self) -> None:
        """Look now, if it is due; take over what another process has kept meanwhile."""
        looked, unkept = Looked.read(self._path), None
        age = (datetime.now(UTC) - looked.at).total_seconds() if looked else DAY
        if age >= (DAY if looked is None or looked.fault is None else _RETRY) or age < 0:
            digest = looked.digest if looked else None
            Looked(datetime.now(UTC), "under way", digest).write(self._path)  # other processes need not look as well
            try:
                edition = fetch(self._source)
                check(edition, newest(self._path))
                unkept = edition
                keep(edition, self._path)
            except PricingError as error:
                Looked(datetime.now(UTC), str(error), digest).write(self._path)
                log.warning("prices could not be refreshed; the present ones remain in use: %s", error)
        found = newest(self._path) or unkept  # where nothing can be written, what was fetched is used all the same
        pricer = self._pricer()
        if found is not None and pricer is not None and found.digest != pricer.price_list.base:
            listed = self._load(found)
            if told := describe_unread(listed):
                log.warning("%s", told)
            pricer.adopt(listed)


_all: weakref.WeakSet[Refresher] = weakref.WeakSet()


@after_fork_in_child
def _go_on() -> None:
    """A forked child has no thread of its parent's."""
    for refresher in list(_all):
        refresher.start()
