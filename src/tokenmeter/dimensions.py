"""The dimensions of a call, and the field's standard names for what stands in them: meters, units, statuses.

Dimensions are one table, which attribution, ledgers, reports, budgets, prices and invoices read. Operations, providers
and statuses follow OpenTelemetry's GenAI conventions; meters and units follow FinOps FOCUS (``SkuMeter``,
``PricingUnit``).

To add a dimension (say ``department``): a row of `TABLE`, a field of `Who`, a key of `WhoArguments` (and of
`AccountArguments`, if invoices are made out to it), all in this file, and a migration for each engine that keeps
accounts in columns. tests/test_dimensions.py does just that, on a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, TypedDict, TypeVar

from tokenmeter.values import dataclass


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
#: Their values in an attribution or an account, in that order.
kept_who: Callable[[Any], tuple[str | None, ...]] = attrgetter(*KEPT_WHO)
#: What an invoice can be made out to.
ACCOUNTS = tuple(one.name for one in TABLE if one.invoiced)
#: What a budget can be about.
SCOPE_FIELDS = tuple(one.name for one in TABLE if one.budgeted)
#: What a platform multiplier can be about, the most specific first.
MULTIPLIER_SCOPES = tuple(
    name for _, name in sorted(((one.specificity, one.name) for one in TABLE if one.specificity), reverse=True)
)


#: Disjoint token classes that a prompt is made of. Their sum is OpenTelemetry's ``gen_ai.usage.input_tokens``.
FRESH_INPUT_METERS: Final = ("input", "input_audio", "input_image", "input_video")
CACHE_READ_METERS: Final = ("cache_read", "cache_read_audio", "cache_read_image", "cache_read_video")
CACHE_WRITE_METERS: Final = ("cache_write_5m", "cache_write_1h", "cache_write_30m", "cache_write_12h")
INPUT_METERS: Final = (*FRESH_INPUT_METERS, *CACHE_READ_METERS, *CACHE_WRITE_METERS)
#: Disjoint token classes of an answer. Their sum is ``gen_ai.usage.output_tokens``; reasoning is a part of ``output``.
OUTPUT_METERS: Final = ("output", "output_audio", "output_image", "output_video")
#: ``output_citation`` and ``output_reasoning`` are Perplexity's, who bills them beside the answer that it counts.
TOKEN_METERS: Final = (*INPUT_METERS, *OUTPUT_METERS, "trained_tokens", "output_citation", "output_reasoning")

#: The unit of each meter, in FOCUS's spelling.
UNITS: Final[dict[str, str]] = {
    **dict.fromkeys(TOKEN_METERS, "Tokens"),
    "seconds_audio": "Seconds",
    "seconds_video": "Seconds",
    "runtime_seconds": "Seconds",
    "characters": "Characters",
    "images": "Images",
    "document_pages": "Pages",
    "annotated_pages": "Pages",
    "songs": "Songs",
    "cache_storage": "Token-Hours",
    "web_searches": "Searches",
    "file_searches": "Searches",
    "attachment_searches": "Searches",
    "search_units": "Searches",  # a query of a reranking model
    "grounded_prompts": "Prompts",
    "search_sources": "Sources",
    "code_executions": "Executions",
    "server_tool_calls": "Calls",  # of tools that no rule knows: they have no price
    "container_sessions": "Sessions",
    "container_minutes": "Minutes",
    "requests": "Requests",
    "provider_cost": "USD",  # a cost the biller supplied, which no table can split into meters
    "adjustment": "USD",
}
#: Units of which a part can be used; of the others there are whole numbers only.
DIVISIBLE: Final = frozenset({"Seconds", "Minutes", "Token-Hours", "USD", "Units"})
ALL_METERS: Final = tuple(UNITS)
Value = TypeVar("Value")
_PLACES: Final = {meter: place for place, meter in enumerate(ALL_METERS)}

#: Operations that are billed by their prompt and a text answer, and those that are by their prompt alone.
TEXT_OPERATIONS: Final = frozenset({"chat", "text_completion", "decision", "generate_content"})
PROMPT_OPERATIONS: Final = frozenset({"embeddings", "rerank", "moderation"})

#: OpenTelemetry's name for a tool at work: part of the calls that set it to work, and no request of its own.
TOOL_OPERATION: Final = "execute_tool"

EntryKind = Literal["usage", "growth", "reversal", "correction", "adjustment"]
#: As what the usage of an entry counts; kinds that are not here change costs only.
COUNTED_AS: Final = {"usage": 1, "growth": 1, "reversal": -1}
#: As how many requests one of a kind counts, where that is not none.
REQUESTS_AS: Final = {"usage": 1, "reversal": -1}
#: Tag of an adjustment that says who posted it: of what is in the ledger for good, a tag can be erased.
POSTED_BY: Final = "posted_by"
#: Tags of an adjustment that say which bucket it settles, apart from whose account it is on. A key is its fingerprint
#: there, or its name where several keys have it, or none; and so in what was posted by the first releases.
SETTLES: Final[Mapping[str, str]] = {"api_key": "reconciled_api_key", "project": "reconciled_project"}
#: ok: an answer came; error: the provider refused or failed; aborted: the caller stopped; timeout: nobody answered.
Status = Literal["ok", "error", "aborted", "timeout"]
#: billed: the biller said the cost; computed: usage x price list; estimated: part of the usage was estimated;
#: unpriced: some meter has no known price; none: nothing billable happened.
CostSource = Literal["billed", "computed", "estimated", "unpriced", "none"]


def in_order(quantities: Mapping[str, Value]) -> list[tuple[str, Value]]:
    """Quantities by meter as every store tells them: in the order of the meters, a user's own behind, by name."""
    return sorted(quantities.items(), key=lambda one: (_PLACES.get(one[0], len(_PLACES)), one[0]))


def unit_of(sku_meter: str) -> str:
    """FOCUS ``PricingUnit`` of a meter; ``"Units"`` for a meter a user's own price list added.

    A size behind the name (``container_sessions_4g``, ``seconds_video_1024p``) has a price, not a unit, of its own.
    """
    return UNITS.get(sku_meter) or UNITS.get(sku_meter.rpartition("_")[0], "Units")
