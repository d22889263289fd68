"""Columns of the FOCUS datasets.

Source of names, types and rules: the FOCUS specification, versions 1.4 and 1.2 (focus.finops.org).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenmeter.ledger import utcnow
from tokenmeter.reports.fields import Field
from tokenmeter.reports.focus_books import BillingMonth, Books, InvoiceLine, service_of
from tokenmeter.reports.focus_rows import CostRow

__all__ = ["billing_period_fields", "cost_and_usage_fields", "invoice_detail_fields"]


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


def cost_and_usage_fields(books: Books, *, version: str, head: str | None) -> list[Field[CostRow]]:
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


def _account(books: Books) -> list[Field[CostRow]]:
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
        Field("ListCost", "money", lambda row: row.list_cost, summed=True),
        Field("ContractedCost", "money", lambda row: row.contracted_cost, summed=True),
        Field("BilledCost", "money", lambda row: row.billed_cost, summed=True),
        Field("EffectiveCost", "money", lambda row: row.billed_cost, summed=True),
    ]


def _prices() -> list[Field[CostRow]]:
    return [
        Field("ConsumedQuantity", "quantity", _when_priced(lambda row: row.quantity)),
        Field("ConsumedUnit", "text", _when_priced(lambda row: row.key.sku.unit)),
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


def _services(books: Books, version: str) -> list[Field[CostRow]]:
    provider, host = (
        ("ProviderName", "PublisherName") if version == "1.2" else ("ServiceProviderName", "HostProviderName")
    )
    return [
        Field(provider, "text", books.issuer),
        Field(host, "text", lambda row: service_of(row.key.sku.provider)[0]),
        Field("ServiceCategory", "text", lambda _: "AI and Machine Learning"),
        Field("ServiceName", "text", lambda row: service_of(row.key.sku.provider)[1]),
        Field("ServiceSubcategory", "text", lambda _: "Generative AI"),
    ]


def _invoice(books: Books, version: str) -> list[Field[CostRow]]:
    invoice: Field[CostRow] = Field("InvoiceId", "text", books.invoice_id)
    return [invoice] if version == "1.2" else [invoice, Field("InvoiceDetailId", "text", books.detail_id)]


def _custom(head: str | None) -> list[Field[CostRow]]:
    return [
        Field("x_ApiKey", "text", lambda row: row.key.owner.api_key),
        Field("x_ApiKeyFingerprint", "text", lambda row: row.key.owner.api_key_fingerprint),
        Field("x_ChargeKey", "text", lambda row: row.charge_key),
        Field("x_CostSource", "text", lambda row: row.key.sku.cost_source),
        Field("x_LedgerHash", "text", lambda _: head),
        Field("x_Member", "text", lambda row: row.key.owner.who.member),
        Field("x_Model", "text", lambda row: row.key.sku.model),
        Field("x_PlatformMultiplier", "price", lambda row: row.key.sku.platform_multiplier),
        Field("x_Project", "text", lambda row: row.key.owner.who.project),
        Field("x_Quantity", "quantity", lambda row: row.quantity if row.key.kind == "usage" else None),
        Field("x_RequestCount", "integer", lambda row: row.requests, summed=True),
        Field("x_ServiceTier", "text", lambda row: row.key.sku.service_tier),
        Field("x_Team", "text", lambda row: row.key.owner.who.team),
        Field("x_Unit", "text", lambda row: row.key.sku.unit),
    ]


def invoice_detail_fields(books: Books) -> list[Field[InvoiceLine]]:
    """Columns of Invoice Detail: what an invoice over these entries would say. Nothing is issued: status ``Open``."""
    now = utcnow()

    def grain(row: CostRow) -> dict[str, str]:
        own = {"ServiceName": service_of(row.key.sku.provider)[1]}
        return own if row.sub_account is None else {**own, "SubAccountId": row.sub_account}

    columns: list[tuple[str, Any, Callable[[CostRow], Any]]] = [
        ("BillingAccountId", "text", books.account),
        ("BillingCurrency", "text", lambda _: "USD"),
        ("BillingPeriodEnd", "second", lambda row: row.key.billing_end),
        ("BillingPeriodStart", "second", lambda row: row.key.billing_start),
        ("ChargeCategory", "text", lambda row: row.category),
        ("InvoiceDetailCreated", "second", lambda _: now),
        ("InvoiceDetailDescription", "text", lambda row: f"{row.category}: {', '.join(grain(row).values())}"),
        ("InvoiceDetailGrain", "json", grain),
        ("InvoiceDetailId", "text", books.detail_id),
        ("InvoiceDetailLastUpdated", "second", lambda _: now),
        ("InvoiceId", "text", books.invoice_id),
        ("InvoiceIssueDate", "second", lambda _: None),
        ("InvoiceIssueStatus", "text", lambda _: "Open"),
        ("InvoiceIssuerName", "text", books.issuer),
        ("PaymentDueDate", "second", lambda _: None),
        ("PaymentTerms", "text", lambda _: books.terms.payment_terms),
        ("ReferenceInvoiceId", "text", books.invoice_id),
    ]
    return [
        Field("BilledCost", "money", lambda line: line.billed_cost, summed=True),
        *(Field(name, kind, _of_row(pick)) for name, kind, pick in columns),
    ]


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
