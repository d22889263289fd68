"""The dimensions of a call: the one table that attribution, ledgers, reports, budgets, prices and invoices read.

To add one (say ``department``): a row of `TABLE`, a field of `Who`, a key of `WhoArguments` (and of
`AccountArguments`, if invoices are made out to it), all in this file, and a migration for each engine that keeps
accounts in columns. tests/test_dimensions.py does just that, on a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict


class Dimension(NamedTuple):
    """Something that entries are grouped and filtered by.

    Attributes:
        name: How it is written everywhere: in reports, filters, budgets, settings, on the command line.
        of: Who says it: ``who`` = the caller, as attribution; ``call`` = the call itself; ``charge`` = each charge.
        invoiced: Whether an invoice can be made out to it.
        budgeted: Whether a budget can be about it.
        specificity: Where it stands among what a platform multiplier can be about: the higher, the more specific.
            None = a multiplier cannot.
        entrywise: Whether each entry keeps its own value. The others are kept once for all entries that share them,
            which is right for what takes few values.
    """

    name: str
    of: Literal["who", "call", "charge"]
    invoiced: bool = False
    budgeted: bool = False
    specificity: int | None = None
    entrywise: bool = False


#: In the order in which reports, exports and messages name them; ``tag:NAME`` adds any tag.
TABLE = (
    Dimension("provider", "call", budgeted=True, specificity=10),
    Dimension("model", "call", budgeted=True, specificity=50),
    Dimension("operation", "call"),
    Dimension("endpoint", "call"),
    Dimension("member", "who", invoiced=True, budgeted=True, specificity=70),
    Dimension("team", "who", invoiced=True, budgeted=True, specificity=30),
    Dimension("organization", "who", invoiced=True, budgeted=True, specificity=20),
    Dimension("project", "who", invoiced=True, budgeted=True, specificity=40),
    Dimension("route", "who", budgeted=True, specificity=60),
    Dimension("end_user", "who", budgeted=True, entrywise=True),
    Dimension("api_key", "call", invoiced=True, budgeted=True, specificity=80),
    Dimension("service_tier", "call"),
    Dimension("status", "call"),
    Dimension("cost_source", "call"),
    Dimension("kind", "call"),
    Dimension("sku_meter", "charge"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """The dimensions that the caller says, as fields of `Attribution` and `Budget`.

    Attributes:
        member: Person or service account inside the organization.
        team: Group of members.
        organization: Customer or legal entity.
        project: Cost object.
        route: Feature or endpoint of the caller's application, for example ``/summarise``.
        end_user: The caller's own customer.
    """

    member: str | None = None
    team: str | None = None
    organization: str | None = None
    project: str | None = None
    route: str | None = None
    end_user: str | None = None


class WhoArguments(TypedDict, total=False):
    """The same as keyword arguments: see `Who`."""

    member: str | None
    team: str | None
    organization: str | None
    project: str | None
    route: str | None
    end_user: str | None


class AccountArguments(TypedDict, total=False):
    """What an invoice or statement is made out to, as keyword arguments; a key goes by its alias."""

    member: str | None
    team: str | None
    organization: str | None
    project: str | None
    api_key: str | None


#: The names of all of them.
DIMENSIONS = tuple(one.name for one in TABLE)
#: What the caller says: the fields of `Who`.
WHO = tuple(one.name for one in TABLE if one.of == "who")
#: Those of them that entries share.
KEPT_WHO = tuple(one.name for one in TABLE if one.of == "who" and not one.entrywise)
#: What an invoice can be made out to.
ACCOUNTS = tuple(one.name for one in TABLE if one.invoiced)
#: What a budget can be about.
SCOPE_FIELDS = tuple(one.name for one in TABLE if one.budgeted)
#: What a platform multiplier can be about, the most specific first.
MULTIPLIER_SCOPES = tuple(
    name for _, name in sorted(((one.specificity, one.name) for one in TABLE if one.specificity), reverse=True)
)
