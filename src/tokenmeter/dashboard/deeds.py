"""What can be done from the pages: how a form becomes a deed of the API, and what the deed would do, in words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, cast
from urllib.parse import quote

from tokenmeter.api import Meter
from tokenmeter.billing import closed_periods
from tokenmeter.budgets import Budget
from tokenmeter.budgets.agreement import describe_field
from tokenmeter.budgets.policy import Unit
from tokenmeter.dashboard.figures import count, dollars, instant, money, money_text, name, scope_name, unit_amount
from tokenmeter.dashboard.view import label_of
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.money import add, subtract
from tokenmeter.serving import acting
from tokenmeter.serving.access import Right
from tokenmeter.values import dataclass

_SOURCE = "dashboard"
_MOST_ROWS = 20
_LONGEST_NUMBER = 40
_FIELD = "set:"
_IN_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
Form = Mapping[str, str]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What will happen.

    Attributes:
        title: In a few words.
        words: In a sentence.
        rows: What, how it is, how it will be.
        button: What is done; empty where nothing would be.
    """

    title: str
    words: str
    rows: Sequence[tuple[str, str, str]]
    button: str = ""

    @property
    def seal(self) -> str:
        """Differs when something else would happen."""
        return hashlib.sha256(repr((self.title, self.words, self.rows)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do.

    Attributes:
        right: What a token needs to do it.
        run: Does it, or with ``dry_run`` says what it would do: the meter, the form, who, the identity, ``dry_run``.
        tell: The latter in words: the form, the answer.
        then: Path of the page that shows what was done.
    """

    right: Right
    run: Callable[[Meter, Form, str, str, bool], Json]
    tell: Callable[[Form, Json], Told]
    then: Callable[[Form, Json], str]


# -- budgets


def _set_budget(meter: Meter, form: Form, by: str, _key: str, dry_run: bool) -> Json:
    fields: dict[str, Any] = {
        key.removeprefix(_FIELD): _typed(key, value.strip()) if value.strip() else None
        for key, value in form.items()
        if key.startswith(_FIELD) and (value.strip() or key.startswith(f"{_FIELD}limit_"))  # a limit is taken away
    }
    if form.get("dimension"):
        fields[form["dimension"]] = form.get("value", "").strip() or "*"
    if form.get("limit", "").strip():
        field = f"limit_{form.get('unit', 'usd')}"
        fields[field] = _typed(_FIELD + field, form["limit"].strip())
    called = form.get("name", "").strip()
    if not called:
        raise ConfigurationError("name: a budget needs a name that others will know it by.")
    # What a change leaves out stays as it is: of a budget that is gone it would make one without whose and for when.
    if form.get("changes") and all(one.name != called for one in meter.budgets.in_force):
        raise LedgerError(
            f"Budget {called!r} has ended since; there is nothing to change. Set it anew if it is needed."
        )
    deed = acting.SetBudget(fields=fields, reason=form.get("reason", "").strip(), dry_run=dry_run)
    return acting.set_budget(meter, called, deed, by=by, source=_SOURCE)


def _typed(key: str, value: str) -> Any:
    if key == f"{_FIELD}hard":
        return value == "true"
    whole = key in {f"{_FIELD}limit_{unit}" for unit in ("tokens", "requests", "in_flight")}
    # People write 1,000,000. What is no number stays as it is, for the budget's own check to refuse; 1,5 is none.
    digits = value.replace(",", "") if _IN_THOUSANDS.fullmatch(value) else value
    return int(digits) if whole and digits.isdecimal() and len(digits) <= _LONGEST_NUMBER else value


def _tell_budget(form: Form, answer: Json) -> Told:
    before: Json = answer["before"] or {}
    after: Json = answer["after"]
    names = [one for one in {**before, **after} if before.get(one) != after.get(one) and one != "name"]
    called = form["name"].strip()
    words = "Every process obeys it with its next call. What was spent stays counted."
    whole = not Budget.parse(after).scope and not (before and not Budget.parse(before).scope)
    return Told(
        title=f"{'Change' if before else 'Set'} budget {name(called)}",
        words=words if names else "Nothing changes: it says so already.",
        rows=[
            *([("counts", "", "every call")] if whole else []),
            *(
                (
                    one.replace("_", " "),
                    describe_field(one, before.get(one)) if before else "",
                    describe_field(one, after.get(one)),
                )
                for one in names
            ),
        ],
        button="Set it" if names else "",
    )


def _end(meter: Meter, form: Form, by: str, _key: str, dry_run: bool) -> Json:
    deed = acting.EndBudget(reason=form.get("reason", "").strip(), dry_run=dry_run)
    return acting.end_budget(meter, form.get("name", ""), deed, by=by, source=_SOURCE)


def _tell_end(form: Form, answer: Json) -> Told:
    before: Json | None = answer["before"]
    title = f"End budget {name(form['name'])}"
    if before is None:
        return Told(title=title, words="Nothing changes: it has ended already.", rows=[])
    definition: Json = before["budget"] or {}
    rows = [(one.replace("_", " "), describe_field(one, said), "") for one, said in definition.items() if one != "name"]
    words = "No call is stopped or counted by it any more. Its history stays; setting it again counts from the ledger."
    return Told(title=title, words=words, rows=rows, button="End it")


def _to_budget(form: Form, _: Json) -> str:
    return f"/budgets/{quote(form['name'].strip(), safe='')}"


def _grant(meter: Meter, form: Form, by: str, key: str, dry_run: bool) -> Json:
    deed = acting.GrantMore.model_validate(
        {
            "amount": form.get("amount", "").strip(),
            "scope": {
                field.removeprefix(_FIELD): value.strip()
                for field, value in form.items()
                if field.startswith(_FIELD) and value.strip()
            },
            "unit": form.get("unit") or None,
            "expires": form.get("expires") or None,
            "key": key,
            "reason": form.get("reason", "").strip(),
            "dry_run": dry_run,
        }
    )
    done = acting.grant(meter, form.get("name", ""), deed, by=by)
    return {**done, "tz": _zone_of(meter, form.get("name", ""))}


def _zone_of(meter: Meter, budget: str) -> str:
    """The time zone that a budget's days are cut by."""
    return next((one.budget.tz for one in meter.budgets.changes() if one.budget and one.name == budget), "UTC")


def _tell_grant(form: Form, answer: Json) -> Told:
    made, unit = answer["grant"], cast("Unit", answer["grant"]["unit"])
    amount = Decimal(answer["amount"])
    rows = [
        (
            f"limit, {_whose(one['scope'])}",
            unit_amount(Decimal(one["limit"]), unit),
            unit_amount(add(Decimal(one["limit"]), amount), unit),
        )
        for one in answer["balances"]
        if one["limit"] is not None
    ]
    # Without a cap there is no limit before and after.
    rows = rows or [(f"granted, {_whose(made['scope'])}", "", unit_amount(amount, unit))]
    until = "until the window ends"
    if made["expires"]:
        until = f"until {instant(datetime.fromisoformat(made['expires']), answer['tz'])} {answer['tz']}"
    return Told(
        title=f"{'Raise' if amount > 0 else 'Take back from'} budget {name(form['name'])}",
        words=f"It counts from the next call on, {until}.",
        rows=rows,
        button="Grant it" if amount > 0 else "Take it back",
    )


def _whose(scope: Mapping[str, str]) -> str:
    told = [f"{label_of(field)} {scope_name(field, value)}" for field, value in scope.items()]
    return ", ".join(told) or "all calls"


# -- periods and invoices


def _close(meter: Meter, form: Form, by: str, _key: str, dry_run: bool) -> Json:
    deed = acting.ClosePeriod(period=form.get("period", "").strip(), tz=form.get("tz") or None, dry_run=dry_run)
    return acting.close_period(meter, deed, by=by)


def _tell_closing(_: Form, answer: Json) -> Told:
    period = answer["period"]
    rows = [
        ("from", "", instant(datetime.fromisoformat(period["start"]), period["tz"])),
        ("until, not included", "", instant(datetime.fromisoformat(period["end"]), period["tz"])),
        ("time zone", "", period["tz"]),
        ("calls", "", count(answer["requests"])),
        ("billed cost", "", dollars(Decimal(answer["billed_cost"]))),
        ("of unknown price, not in it", "", count(answer["unpriced"])),
        ("estimated", "", count(answer["estimated"])),
        *((f"corrections of {one['period']}", "", dollars(Decimal(one["billed_cost"]))) for one in answer["late"]),
    ]
    words = "It is closed for good; what comes in later is a correction in the next one."
    if answer["closed_at"]:
        at = instant(datetime.fromisoformat(answer["closed_at"]), period["tz"])
        words = f"Nothing changes: {name(answer['closed_by'])} closed it at {at}."
    button = "" if answer["closed_at"] else "Close it"
    return Told(title=f"Close {name(period['label'])}", words=words, rows=rows, button=button)


def _to_closing(_: Form, done: Json) -> str:
    return f"/periods/{quote(str(done['key']))}"


def _issue(meter: Meter, form: Form, by: str, _key: str, dry_run: bool) -> Json:
    deed = acting.IssueInvoice.model_validate(
        {
            "account": {form.get("account", ""): form.get("of", "").strip()},
            "period": form.get("period", ""),
            "tz": form.get("tz") or None,
            "lines_by": form.get("lines_by", ""),
            "on": form.get("on", "").strip() or None,
            "force": form.get("force") == "1",
            "allow_unpriced": form.get("allow_unpriced") == "1",
            "dry_run": dry_run,
        }
    )
    # By the closing itself: what a period is called (two instants, in older ledgers a week's first day) may say
    # another, or none.
    closed = form.get("closing") and next(
        (one.period for one in closed_periods(meter.store) if one.document and one.document.key == form["closing"]),
        None,
    )
    return acting.issue_invoice(meter, deed, by=by, period=closed or None)


def _tell_invoice(_: Form, answer: Json) -> Told:
    currency, sums = answer["currency"], answer["totals"]
    rows = [
        ("to", "", name(answer["buyer"]["name"])),
        ("period", "", answer["period"]["label"]),
        ("lines", "", count(len(answer["lines"]))),
        ("net", "", money_text(Decimal(sums["net"]), currency)),
        *((name(tax["label"]), "", money_text(Decimal(tax["amount"]), currency)) for tax in sums["taxes"]),
        ("total", "", money_text(Decimal(sums["total"]), currency)),
    ]
    unpriced = sum(line["unpriced"] for line in answer["lines"])
    if unpriced:
        rows.append(("charges without a known price, not billed", "", count(unpriced)))
    words = "It gets the next number of its series and is never changed; a credit note puts right what is wrong."
    if answer["number"]:
        words = f"Nothing changes: invoice {name(answer['number'])} says so already."
    return Told(
        title=f"Issue an invoice to {name(answer['buyer']['name'])}",
        words=words,
        rows=rows,
        button="" if answer["number"] else "Issue it",
    )


def _to_invoice(_: Form, done: Json) -> str:
    return f"/invoices/{quote(str(done['number']))}"


def _credit(meter: Meter, form: Form, by: str, key: str, dry_run: bool) -> Json:
    amount, reason = form.get("amount", "").strip(), form.get("reason", "").strip()
    told = {"amount": amount or None, "line": form.get("line") or None, "key": key, "reason": reason}
    deed = acting.CreditInvoice.model_validate({**told, "dry_run": dry_run})
    done = acting.credit_invoice(meter, form.get("number", ""), deed, by=by)
    if done is None:
        raise LedgerError("There is no such invoice in this ledger.")
    return done


def _tell_credit(form: Form, answer: Json) -> Told:
    note, currency, balance = (
        answer["credit_note"],
        answer["invoice"]["currency"],
        Decimal(answer["invoice"]["balance"]),
    )
    title = f"Credit invoice {name(form['number'])}"
    if note is None:
        return Told(title=title, words="Nothing changes: it is credited already.", rows=[])
    whole = Decimal(note["total"])
    return Told(
        title=title,
        words="It gets a number of its own and is never changed.",
        rows=[
            *((name(line["description"]), "", money_text(Decimal(line["amount"]), currency)) for line in note["lines"]),
            ("net", "", money_text(Decimal(note["net"]), currency)),
            *((name(tax["label"]), "", money_text(Decimal(tax["amount"]), currency)) for tax in note["taxes"]),
            ("given back", "", money_text(whole, currency)),
            ("left to pay", money_text(balance, currency), money_text(subtract(balance, whole), currency)),
        ],
        button="Credit it",
    )


def _pay(meter: Meter, form: Form, by: str, key: str, dry_run: bool) -> Json:
    deed = acting.RecordPayment.model_validate(
        {
            "amount": form.get("amount", "").strip() or None,
            "on": form.get("on", "").strip() or None,
            "reference": form.get("reference", ""),
            "key": key,
            "dry_run": dry_run,
        }
    )
    done = acting.record_payment(meter, form.get("number", ""), deed, by=by)
    if done is None:
        raise LedgerError("There is no such invoice in this ledger.")
    return done


def _tell_payment(form: Form, answer: Json) -> Told:
    made, currency = answer["payment"], answer["invoice"]["currency"]
    title = f"Record a payment of invoice {name(form['number'])}"
    if made is None:
        return Told(title=title, words="Nothing changes: it is recorded, or paid, already.", rows=[])
    rows = [
        ("came", "", money_text(Decimal(made["amount"]), currency)),
        ("on", "", made["on"]),
        ("reference", "", name(made["note"]) if made["note"] else "none"),
        (
            "left to pay",
            money_text(Decimal(answer["invoice"]["balance"]), currency),
            money_text(Decimal(answer["balance"]), currency),
        ),
    ]
    words = "It stays on the invoice's trail; what was wrong is put right by a negative payment."
    return Told(title=title, words=words, rows=rows, button="Record it")


def _to_paid(form: Form, _: Json) -> str:
    return f"/invoices/{quote(form['number'])}"


def _to_note(_: Form, done: Json) -> str:
    return f"/credit-notes/{quote(str(done['number']))}"


# -- prices


def _reprice(meter: Meter, form: Form, by: str, _key: str, dry_run: bool) -> Json:
    deed = acting.Reprice(
        period=form.get("period") or None,
        where=[f"model={form['model']}"] if form.get("model", "").strip() else [],
        tz=form.get("tz") or "UTC",
        changed=form.get("changed") == "1",
        dry_run=dry_run,
    )
    return acting.reprice(meter, deed, by=by)


def _tell_reprice(_: Form, answer: Json) -> Told:
    rows = [
        ("corrections", "", count(answer["corrections"])),
        ("billed cost", "", money(Decimal(answer["billed_cost"]))),
    ]
    rows += list(_first_corrections(answer["first"]))
    words = "Each is an entry of its own that carries the difference; what was recorded stays, and closed periods too."
    if not answer["corrections"]:
        words = "Nothing changes: no call has a price now that it had not when it was recorded."
    button = "Append the corrections" if answer["corrections"] else ""
    return Told(title="Price calls anew", words=words, rows=rows, button=button)


def _first_corrections(entries: Sequence[Json]) -> Iterator[tuple[str, str, str]]:
    for one in entries[:_MOST_ROWS]:
        cost = one["billed_cost"]
        yield (
            f"{one['occurred_at'][:16]} {one['model'] or one['endpoint']}",
            "",
            dollars(Decimal(cost)) if cost else "",
        )


def _to_corrections(_: Form, __: Json) -> str:
    return "/entries?period=all&kind=correction"


ACTS = {
    "budget": Act("budgets", _set_budget, _tell_budget, _to_budget),
    "end": Act("budgets", _end, _tell_end, _to_budget),
    "grant": Act("budgets", _grant, _tell_grant, _to_budget),
    "close": Act("invoices", _close, _tell_closing, _to_closing),
    "invoice": Act("invoices", _issue, _tell_invoice, _to_invoice),
    "credit": Act("invoices", _credit, _tell_credit, _to_note),
    "payment": Act("invoices", _pay, _tell_payment, _to_paid),
    "reprice": Act("prices", _reprice, _tell_reprice, _to_corrections),
}
