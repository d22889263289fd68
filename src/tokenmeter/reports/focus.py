"""The ledger in FOCUS, the FinOps Open Cost and Usage Specification: 1.4 (three datasets) and 1.2.

Cost and Usage has one row per hour, API key, attribution, model, price and meter. FOCUS 1.4 has no columns for tokens,
models or tiers; they are in ``SkuPriceDetails`` and in columns that begin with ``x_``.

Source of the columns' names, types and rules: the FOCUS specification, versions 1.4 and 1.2 (focus.finops.org).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.reports.closings import Closings
from tokenmeter.reports.export import Manifest, Origin, write
from tokenmeter.reports.fields import Field
from tokenmeter.reports.focus_rows import (
    OWNER_FIELDS,
    BillingMonth,
    CostRow,
    FocusSums,
    FocusTerms,
    InvoiceLine,
    Issued,
    cost_rows,
    read_issued,
    service_of,
)
from tokenmeter.reports.query import Query, read_entries
from tokenmeter.reports.writers import refuse_existing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tokenmeter.stores.base import Store

__all__ = [
    "FOCUS_VERSIONS",
    "FocusTerms",
    "billing_period_fields",
    "cost_and_usage_fields",
    "export_focus",
    "invoice_detail_fields",
]


FOCUS_VERSIONS = ("1.4", "1.2")
_DATASETS = ("cost_and_usage", "invoice_detail", "billing_period")


def export_focus(
    store: Store,
    folder: str | Path,
    *,
    version: str = "1.4",
    query: Query | None = None,
    terms: FocusTerms | None = None,
    format: str = "csv",  # noqa: A002 - what everybody calls it
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Manifest]:
    """Write FOCUS datasets into a folder: ``cost_and_usage``, and for 1.4 ``invoice_detail`` and ``billing_period``.

    Memory holds the rows of one hour, and one line per invoice line.

    Args:
        store: The ledger.
        folder: Made when it is missing.
        version: ``"1.4"`` or ``"1.2"``.
        query: Which entries, and the time zone of billing months and hours; all, in UTC, by default.
        terms: Issuer, default account and payment terms.
        format: ``csv``, ``jsonl``, ``parquet`` or ``xlsx``.
        overwrite: Whether existing files may be replaced.
        progress: Called now and then with the number of Cost and Usage rows written.

    Returns:
        Dataset name -> its manifest.

    Raises:
        ConfigurationError: an unknown version or format, or a file that exists.
    """
    if version not in FOCUS_VERSIONS:
        raise ConfigurationError(f"Unknown FOCUS version {version!r}; use {' or '.join(FOCUS_VERSIONS)}.")
    query = query or Query()
    place = _folder(folder, version, format, overwrite=overwrite)
    books = FocusSums(terms or FocusTerms(), read_issued(store))
    origin = Origin.of(store, f"FOCUS {version} Cost and Usage", query)
    entries = origin.watch(read_entries(store, query))
    columns = cost_and_usage_fields(books, version=version, head=origin.ledger["head"])
    rows = _noting(books.watch(cost_rows(entries, query.period.tz, Closings(store))), books, origin)
    written = {
        "cost_and_usage": write(
            rows, columns, place / f"cost_and_usage.{format}", origin, overwrite=overwrite, progress=progress
        )
    }
    if version == "1.2":
        return written
    for name, records, fields in _other_datasets(books):
        part = Origin(dataset=f"FOCUS {version} {name}", query=query, ledger=origin.ledger)
        file = name.lower().replace(" ", "_")
        written[file] = write(records, fields, place / f"{file}.{format}", part, overwrite=overwrite)
    return written


def _folder(folder: str | Path, version: str, format: str, *, overwrite: bool) -> Path:  # noqa: A002 - as above
    """The folder, ready to take every dataset: none is written when one of them cannot be."""
    place = Path(folder)
    if not overwrite:
        for name in _DATASETS if version == "1.4" else _DATASETS[:1]:
            refuse_existing(place / f"{name}.{format}")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{str(place)!r} cannot be made a folder: {error.strerror}. Name another.") from error
    return place


def _other_datasets(books: FocusSums) -> Iterator[tuple[str, Iterable[Any], Sequence[Field[Any]]]]:
    yield "Invoice Detail", books.lines.values(), invoice_detail_fields(books)
    yield "Billing Period", books.periods, billing_period_fields()


def _noting(rows: Iterator[CostRow], books: FocusSums, origin: Origin) -> Iterator[CostRow]:
    yield from rows
    if books.unpriced:
        origin.notes.append(
            f"Rows of usage without a known price: {books.unpriced:,}. FOCUS allows no empty cost: they say 0, and "
            "x_CostSource says 'unpriced'. Their quantity is in x_Quantity."
        )


def _sku_id(row: CostRow) -> str | None:
    sku = row.key.sku
    return f"{sku.provider}/{sku.model or 'unknown'}/{sku.meter}" if sku.meter else None


def _price_id(row: CostRow) -> str | None:
    return (row.key.sku.price_id or _sku_id(row)) if row.priced else None


def _when_priced(pick: Callable[[CostRow], Any]) -> Callable[[CostRow], Any]:
    """FOCUS leaves prices and quantities empty where no price applies."""
    return lambda row: pick(row) if row.priced else None


def _price_details(row: CostRow) -> dict[str, str | None]:
    sku = row.key.sku
    return {"x_Model": sku.model, "x_ServiceTier": sku.service_tier, "x_TokenType": sku.meter}


def _description(row: CostRow) -> str:
    sku, kind = row.key.sku, row.key.kind
    what = " ".join(part for part in (sku.model, sku.meter) if part) or sku.provider
    return what if kind == "usage" else f"{kind}: {what}"


def _sub_account_type(row: CostRow) -> str | None:
    owner = row.key.owner.who
    return "Member" if owner.member else "Team" if owner.team else None


def cost_and_usage_fields(books: FocusSums, *, version: str, head: str | None) -> list[Field[CostRow]]:
    """Columns of Cost and Usage, alphabetical, custom ones last."""
    columns = [
        *_account(books),
        *_charge(),
        *_costs(),
        *_prices(),
        *_services(books, version),
        *_invoice(books, version),
    ]
    return [*sorted(columns, key=lambda one: one.name), *_custom(head)]


def _account(books: FocusSums) -> list[Field[CostRow]]:
    return [
        Field("BillingAccountId", "text", books.account),
        Field("BillingAccountName", "text", books.account),
        Field("BillingAccountType", "text", lambda _: "Organization"),
        Field("BillingCurrency", "text", lambda _: "USD"),
        Field("BillingPeriodStart", "second", lambda row: row.key.billing_start),
        Field("BillingPeriodEnd", "second", lambda row: row.key.billing_end),
        Field("InvoiceIssuerName", "text", books.issuer),
        Field("SubAccountId", "text", lambda row: row.sub_account),
        Field("SubAccountName", "text", lambda row: row.key.owner.who.member or row.key.owner.who.team),
        Field("SubAccountType", "text", _sub_account_type),
        Field("Tags", "json", lambda row: dict(row.key.owner.who.tags) or None),
    ]


def _charge() -> list[Field[CostRow]]:
    return [
        Field("ChargeCategory", "text", lambda row: row.category),
        Field("ChargeClass", "text", lambda row: "Correction" if row.key.late else None),
        Field("ChargeDescription", "text", _description),
        Field("ChargeFrequency", "text", lambda row: "Usage-Based" if row.category == "Usage" else "One-Time"),
        Field("ChargePeriodStart", "second", lambda row: row.key.hour_start),
        Field("ChargePeriodEnd", "second", lambda row: row.key.hour_end),
    ]


def _costs() -> list[Field[CostRow]]:
    return [
        Field("ListCost", "money", lambda row: row.costs.list_cost, summed=True),
        Field("ContractedCost", "money", lambda row: row.costs.contracted_cost, summed=True),
        Field("BilledCost", "money", lambda row: row.costs.billed_cost, summed=True),
        Field("EffectiveCost", "money", lambda row: row.costs.billed_cost, summed=True),
    ]


def _prices() -> list[Field[CostRow]]:
    return [
        Field("ConsumedQuantity", "quantity", lambda row: row.consumed[0]),
        Field("ConsumedUnit", "text", lambda row: row.consumed[1]),
        Field("ContractedUnitPrice", "price", _when_priced(lambda row: row.key.sku.contracted_unit_price)),
        Field("ListUnitPrice", "price", _when_priced(lambda row: row.key.sku.list_unit_price)),
        Field("PricingCategory", "text", _when_priced(lambda _: "Standard")),
        Field("PricingQuantity", "quantity", _when_priced(lambda row: row.quantity)),
        Field("PricingUnit", "text", _when_priced(lambda row: row.key.sku.unit)),
        Field("SkuId", "text", _sku_id),
        Field("SkuMeter", "text", lambda row: row.key.sku.meter),
        Field("SkuPriceDetails", "json", _when_priced(_price_details)),
        Field("SkuPriceId", "text", _price_id),
    ]


def _services(books: FocusSums, version: str) -> list[Field[CostRow]]:
    provider, host = (
        ("ProviderName", "PublisherName") if version == "1.2" else ("ServiceProviderName", "HostProviderName")
    )
    return [
        Field(provider, "text", books.provider),
        Field(host, "text", lambda row: service_of(row.key.sku.provider)[0]),
        Field("ServiceCategory", "text", lambda _: "AI and Machine Learning"),
        Field("ServiceName", "text", lambda row: service_of(row.key.sku.provider)[1]),
        Field("ServiceSubcategory", "text", lambda _: "Generative AI"),
    ]


def _invoice(books: FocusSums, version: str) -> list[Field[CostRow]]:
    invoice: Field[CostRow] = Field("InvoiceId", "text", books.invoice_id)
    return [invoice] if version == "1.2" else [invoice, Field("InvoiceDetailId", "text", books.detail_id)]


def _custom(head: str | None) -> list[Field[CostRow]]:
    """Columns that FOCUS lacks, by name; an organization is FOCUS's billing account."""
    whose = [_dimension(name) for name in OWNER_FIELDS if name != "organization"]
    columns: list[Field[CostRow]] = [
        *whose,
        Field("x_ApiKey", "text", lambda row: row.key.owner.api_key),
        Field("x_ApiKeyFingerprint", "text", lambda row: row.key.owner.api_key_fingerprint),
        Field("x_ChargeKey", "text", lambda row: row.charge_key),
        Field("x_CostSource", "text", lambda row: row.key.sku.cost_source),
        Field("x_LedgerHash", "text", lambda _: head),
        Field("x_Model", "text", lambda row: row.key.sku.model),
        Field("x_PlatformMultiplier", "price", lambda row: row.key.sku.platform_multiplier),
        Field("x_Quantity", "quantity", lambda row: row.quantity if row.key.kind == "usage" else None),
        Field("x_RequestCount", "integer", lambda row: row.requests, summed=True),
        Field("x_ServiceTier", "text", lambda row: row.key.sku.service_tier),
        Field("x_Unit", "text", lambda row: row.key.sku.unit),
    ]
    return sorted(columns, key=lambda column: column.name)


def _dimension(name: str) -> Field[CostRow]:
    return Field(f"x_{name.title().replace('_', '')}", "text", lambda row: row.key.owner.about(name))


def invoice_detail_fields(books: FocusSums) -> list[Field[InvoiceLine]]:
    """Columns of Invoice Detail: what the issued invoice of these entries says, or, ``Open``, one would say."""
    now = utcnow()

    def of_invoice(pick: Callable[[Issued], Any], otherwise: Any) -> Callable[[CostRow], Any]:
        def value(row: CostRow) -> Any:
            invoice = books.invoice(row)
            return otherwise if invoice is None else pick(invoice)

        return value

    def grain(row: CostRow) -> dict[str, str]:
        own = {"ServiceName": service_of(row.key.sku.provider)[1]}
        return own if row.sub_account is None else {**own, "SubAccountId": row.sub_account}

    terms = books.terms.payment_terms
    columns: list[tuple[str, Any, Callable[[CostRow], Any]]] = [
        ("BillingAccountId", "text", books.account),
        ("BillingCurrency", "text", lambda _: "USD"),
        ("BillingPeriodEnd", "second", lambda row: row.key.billing_end),
        ("BillingPeriodStart", "second", lambda row: row.key.billing_start),
        ("ChargeCategory", "text", lambda row: row.category),
        ("InvoiceDetailCreated", "second", of_invoice(lambda one: one.filed_at, now)),
        ("InvoiceDetailDescription", "text", lambda row: f"{row.category}: {', '.join(grain(row).values())}"),
        ("InvoiceDetailGrain", "json", grain),
        ("InvoiceDetailId", "text", books.detail_id),
        ("InvoiceDetailLastUpdated", "second", of_invoice(lambda one: one.filed_at, now)),
        ("InvoiceId", "text", books.invoice_id),
        ("InvoiceIssueDate", "second", of_invoice(lambda one: _at_midnight(one.issued_on), None)),
        ("InvoiceIssueStatus", "text", of_invoice(lambda _: "Issued", "Open")),
        ("InvoiceIssuerName", "text", books.issuer),
        ("PaymentDueDate", "second", of_invoice(lambda one: _at_midnight(one.due_on), None)),
        ("PaymentTerms", "text", of_invoice(lambda one: one.payment_terms or terms, terms)),
        ("ReferenceInvoiceId", "text", books.invoice_id),
    ]
    return [
        Field("BilledCost", "money", lambda line: line.billed_cost, summed=True),
        *(Field(name, kind, _of_row(pick)) for name, kind, pick in columns),
    ]


def _at_midnight(day: date) -> datetime:
    """A day of an invoice, which FOCUS wants as an instant: the same day in UTC, so that it reads as on the invoice."""
    return datetime.combine(day, time(), UTC)


def _of_row(pick: Callable[[CostRow], Any]) -> Callable[[InvoiceLine], Any]:
    return lambda line: pick(line.row)


def billing_period_fields() -> list[Field[BillingMonth]]:
    """Columns of Billing Period. A month is closed once it is over."""
    now = utcnow()
    return [
        Field("BillingPeriodCreated", "second", lambda month: month.start),
        Field("BillingPeriodEnd", "second", lambda month: month.end),
        Field("BillingPeriodLastUpdated", "second", lambda month: max(now, month.start)),
        Field("BillingPeriodStart", "second", lambda month: month.start),
        Field("BillingPeriodStatus", "text", lambda month: "Closed" if month.end <= now else "Open"),
        Field("InvoiceIssuerName", "text", lambda month: month.issuer),
    ]
