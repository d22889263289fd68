"""Who bills whom, and how: the ``[billing]`` settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from decimal import Decimal
from typing import Any, cast

from tokenmeter.dimensions import ACCOUNTS
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.money import EXACT, USD, check_currency, parse_decimal
from tokenmeter.periods import zone
from tokenmeter.values import dataclass

_PERCENT = Decimal(100)
#: Tax categories of EN 16931 that an invoice of services can have.
TAX_CATEGORIES = ("S", "Z", "E", "AE", "K", "G", "O")
#: Forms of electronic invoices; see `tokenmeter.billing.make_einvoice`.
EINVOICE_FORMS = ("factur-x", "zugferd", "cii", "ubl", "xrechnung")
#: Those that are a PDF; Germany calls the same file by another name.
EINVOICE_PDFS = ("factur-x", "zugferd")
#: A party's settings that are one text each.
_TEXTS = (
    *("email", "tax_id", "cost_centre", "purchase_order", "country", "city", "postcode", "contact", "phone"),
    *("legal_id", "iban", "bic", "reference", "electronic_address", "electronic_scheme"),
)


#: Days; ten years.
_LONGEST_TERMS = 3_650


@dataclass(frozen=True, slots=True, kw_only=True)
class Tax:
    """A tax on the net amount.

    Attributes:
        name: ``"VAT"``, ``"GST"``, ...
        rate: As a fraction: ``Decimal("0.19")``.
        note: What the law wants said, for example about reverse charge.
        category: Code of EN 16931 (UNTDID 5305): ``S`` standard, ``Z`` zero, ``E`` exempt, ``AE`` reverse charge, ``K``
            intra-community, ``G`` export, ``O`` outside. Default: ``S``, or ``Z`` at a rate of 0.
        exemption: Code of the reason (VATEX), such as ``VATEX-EU-AE``.
    """

    name: str
    rate: Decimal
    note: str | None = None
    category: str = "S"
    exemption: str | None = None

    @classmethod
    def parse(cls, row: object, *, where: str) -> Tax:
        """A tax from a mapping.

        Raises:
            ConfigurationError: a wrong key, or a rate outside 0 to 1.
        """
        values = _checked(cls, row, where)
        rate = parse_decimal(values.get("rate"), name=f"{where}.rate")
        if not 0 <= rate < 1:
            raise ConfigurationError(f"{where}.rate is a fraction such as '0.19' for 19%, not {rate}.")
        category = _text(values, "category", where) or ("S" if rate else "Z")
        if category not in TAX_CATEGORIES:
            raise ConfigurationError(f"{where}.category is one of {', '.join(TAX_CATEGORIES)}, not {category!r}.")
        if rate and category != "S":
            raise ConfigurationError(f"{where}: category {category!r} goes with a rate of 0, not {rate}.")
        return cls(
            name=_text(values, "name", where) or "Tax",
            rate=rate,
            note=_text(values, "note", where),
            category=category,
            exemption=_text(values, "exemption", where),
        )

    @property
    def label(self) -> str:
        """``VAT 19%``."""
        return f"{self.name} {EXACT.multiply(self.rate, _PERCENT).normalize(EXACT):f}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A seller or a buyer.

    Attributes:
        name: Its name.
        address: Its lines, as they are printed.
        email: Where to write.
        tax_id: VAT or tax number.
        cost_centre: The buyer's cost centre.
        purchase_order: The buyer's order number.
        payment: How to pay the seller: lines with bank and account.
        taxes: The buyer's own taxes, instead of the profile's; None = the profile's.
        country: ISO 3166 code, ``DE``. This and what follows is for electronic invoices and is not printed.
        city: Town.
        postcode: Postal code.
        contact: Name of a person or department.
        phone: Its telephone.
        legal_id: Registration number.
        iban: The seller's account.
        bic: Its bank.
        reference: What the buyer wants to find its order by, in Germany the Leitweg-ID.
        electronic_address: Where electronic invoices arrive.
        electronic_scheme: Its scheme (EAS); default ``EM``, an address for mail.
    """

    name: str
    address: tuple[str, ...] = ()
    email: str | None = None
    tax_id: str | None = None
    cost_centre: str | None = None
    purchase_order: str | None = None
    payment: tuple[str, ...] = ()
    taxes: tuple[Tax, ...] | None = None
    country: str | None = None
    city: str | None = None
    postcode: str | None = None
    contact: str | None = None
    phone: str | None = None
    legal_id: str | None = None
    iban: str | None = None
    bic: str | None = None
    reference: str | None = None
    electronic_address: str | None = None
    electronic_scheme: str | None = None

    @classmethod
    def parse(cls, row: object, *, where: str) -> Party:
        """A party from a mapping; a text alone is its name.

        Raises:
            ConfigurationError: a wrong key or no name.
        """
        values = _checked(cls, {"name": row} if isinstance(row, str) else row, where)
        texts = {key: (_text(values, key, where) or "").strip() or None for key in ("name", *_TEXTS)}
        name, country = texts.pop("name"), texts["country"]
        if country is not None and len(country) == 2:  # noqa: PLR2004 - a code
            texts["country"] = country.upper()
        if not name:
            raise ConfigurationError(f"{where}.name is missing: every invoice names its parties.")
        return cls(
            name=name,
            address=read_lines(values, "address", where),
            payment=read_lines(values, "payment", where),
            taxes=_taxes(values["taxes"], f"{where}.taxes") if values.get("taxes") is not None else None,
            **texts,
        )

    def to_dict(self) -> dict[str, Any]:
        """What an invoice keeps of it, JSON-ready; what is not known is left out."""
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "taxes"}
        return {
            name: list(cast("tuple[str, ...]", value)) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Party:
        """A party from `to_dict`."""
        # What has no name left it out.
        known: dict[str, Any] = {"name": "", **values}
        for name in ("address", "payment"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingProfile:
    """How invoices are made.

    Attributes:
        seller: Who bills.
        buyers: ``"member=ada"`` -> party; without one, the buyer is named like the account.
        currency: ISO 4217 code.
        tz: Zone in which periods are cut and dates are written; None = periods are cut as the last one that was
            closed, dates are UTC's.
        series: What invoice numbers begin with: ``"INV-"`` makes ``INV-00001``.
        credit_series: The same for credit notes.
        terms_days: Days until payment is due.
        payment_terms: A sentence instead of the usual one.
        taxes: On every invoice, unless the buyer has its own.
        notes: Printed at the end.
        einvoice: Which electronic invoice is made of them, ``factur-x`` (or ``zugferd``), ``cii``, ``ubl`` or
            ``xrechnung``: what that lacks stops an issue.
    """

    seller: Party = field(default_factory=lambda: Party(name="(seller not configured)"))
    buyers: Mapping[str, Party] = field(default_factory=dict[str, Party])
    currency: str = USD
    tz: str | None = None
    series: str = "INV-"
    credit_series: str = "CN-"
    terms_days: int = 30
    payment_terms: str | None = None
    taxes: tuple[Tax, ...] = ()
    notes: tuple[str, ...] = ()
    einvoice: str | None = None

    @classmethod
    def parse(cls, row: object, *, file: str = "configuration") -> BillingProfile:
        """The profile from a ``[billing]`` mapping.

        Raises:
            ConfigurationError: an unknown key or a bad value; says which.
        """
        where = f"{file}: billing"
        values = _checked(cls, row, where)
        texts: dict[str, Any] = {
            key: _text(values, key, where) for key in ("currency", "tz", "series", "credit_series", "einvoice")
        }
        days = values.get("terms_days", 30)
        if not isinstance(days, int) or isinstance(days, bool) or not 0 <= days <= _LONGEST_TERMS:
            raise ConfigurationError(
                f"{where}.terms_days is a number of days from 0 to {_LONGEST_TERMS:,}, not {days!r}."
            )
        if "seller" in values:
            texts["seller"] = Party.parse(values["seller"], where=f"{where}.seller")
        profile = cls(
            buyers=_buyers(values.get("buyers", {}), f"{where}.buyers"),
            terms_days=days,
            payment_terms=_text(values, "payment_terms", where),
            taxes=_taxes(values.get("taxes", ()), f"{where}.taxes"),
            notes=read_lines(values, "notes", where),
            **{key: value for key, value in texts.items() if value is not None},
        )
        check_currency(profile.currency)
        zone(profile.calendar)
        if profile.einvoice is not None and profile.einvoice not in EINVOICE_FORMS:
            raise ConfigurationError(f"{where}.einvoice is {', '.join(EINVOICE_FORMS)}, not {profile.einvoice!r}.")
        if profile.series == profile.credit_series:
            raise ConfigurationError(f"{where}: series and credit_series must differ; both are {profile.series!r}.")
        return profile

    @property
    def calendar(self) -> str:
        """The zone in which dates are written."""
        return self.tz or "UTC"

    def buyer(self, scope: Mapping[str, str]) -> Party:
        """The buyer of an account: the one configured for it, else one of that name."""
        for dimension, value in scope.items():
            if found := self.buyers.get(f"{dimension}={value}"):
                return found
        return Party(name=", ".join(scope.values()))


def _checked(kind: type[Any], row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{where} is a table of settings, not {shown(row)}.")
    values = dict(cast("Mapping[str, Any]", row))
    known = [one.name for one in fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigurationError(
                f"{where}: unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {known}.")
            )
    return values


def _text(values: Mapping[str, Any], key: str, where: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{where}.{key} is a text, not {shown(value)}.")
    _check_letters(value or "", f"{where}.{key}")
    return value


def _check_letters(text: str, name: str) -> None:
    """Refuse halves of letters, which no document can be filed with."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigurationError(f"{name} must not contain halves of letters: {shown(text)}.")


def read_lines(values: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A text of several lines, or a list of them.

    Raises:
        ConfigurationError: neither.
    """
    value = values.get(key) or ()
    lines: list[Any] = value.splitlines() if isinstance(value, str) else list(value) if _listed(value) else [None]
    if not all(isinstance(line, str) for line in lines):
        raise ConfigurationError(f"{where}.{key} is a list of lines, not {shown(value)}.")
    _check_letters("".join(lines), f"{where}.{key}")
    return tuple(lines)


def _listed(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _taxes(rows: Any, where: str) -> tuple[Tax, ...]:
    if not _listed(rows):
        raise ConfigurationError(f"{where} is a list of tables, written [[billing.taxes]].")
    return tuple(row if isinstance(row, Tax) else Tax.parse(row, where=where) for row in rows)


def _buyers(table: Any, where: str) -> dict[str, Party]:
    """Buyers written ``[billing.buyers.member.ada]``."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where} is a table such as [billing.buyers.member.ada].")
    found: dict[str, Party] = {}
    for dimension, accounts in cast("Mapping[str, Any]", table).items():
        if dimension not in ACCOUNTS or not isinstance(accounts, Mapping):
            raise ConfigurationError(
                f"{where}.{dimension}: write [billing.buyers.member.ada], with one of {', '.join(ACCOUNTS)} "
                "in the middle."
            )
        for name, row in cast("Mapping[str, Any]", accounts).items():
            found[f"{dimension}={name}"] = Party.parse(row, where=f"{where}.{dimension}.{name}")
    return found
