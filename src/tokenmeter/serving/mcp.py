"""An MCP server over the ledger: an assistant asks what was spent, what remains, what something costs. It only reads.

Needs the extra ``mcp``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import Tool, ToolAnnotations
from pydantic import Field, ValidationError

from tokenmeter import estimating
from tokenmeter.dimensions import DIMENSIONS
from tokenmeter.errors import TokenmeterError
from tokenmeter.reports import Query
from tokenmeter.reports.query import parse_conditions
from tokenmeter.serving import answers
from tokenmeter.serving.lens import ReadableMeter

_INSTRUCTIONS = (
    "What an organisation's calls to language models used and cost, from its own ledger. Amounts are exact decimals in "
    "text, in US dollars unless a unit stands beside them; null means unknown (no price is known), never zero: say so. "
    "`unpriced` and `estimated` count entries whose cost is missing or estimated. Ask `report` for sums rather than "
    "adding up entries. Days are cut in UTC unless `tz` names a zone."
)
_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Period = Annotated[
    str | None, Field(description="2026-11, 2026-Q4, today, yesterday, last-month, last-7d, last-24h; none = all time")
]
Since = Annotated[str | None, Field(description="First instant (ISO 8601), instead of a period")]
Until = Annotated[str | None, Field(description="First instant after the end")]
Where = Annotated[
    list[str],
    Field(
        description=f"DIMENSION=VALUE: {', '.join(DIMENSIONS)} or tag:NAME. Values of one dimension are alternatives; "
        "nothing after = means not set; != means all others.",
    ),
]
Zone = Annotated[str, Field(description="IANA time zone of the calendar")]
Provider = Annotated[str | None, Field(description="openai, anthropic, ...; none = by the model's name")]
Tokens = Annotated[int | None, Field(ge=0)]


@contextmanager
def _telling_errors() -> Generator[None]:
    """An error of tokenmeter's as one that the assistant reads: it says what to do."""
    try:
        yield
    except TokenmeterError as error:
        raise ToolError(str(error)) from error


def _parse_query(
    period: str | None,
    since: str | None,
    until: str | None,
    where: list[str],
    tz: str,
    *,
    by: str | list[str] = "",
    granularity: str | None = None,
) -> Query:
    return Query.parse(
        by=by or (),
        period=period,
        since=since,
        until=until,
        granularity=granularity,
        where=parse_conditions(where, "where"),
        tz=tz,
    )


class _Server(MCPServer[Any]):
    """A server whose tools take what they say and nothing else: a filter that is misspelt must not show everything."""

    async def list_tools(self) -> list[Tool]:
        """The tools, described as they are."""
        found = await super().list_tools()
        closed = {"additionalProperties": False}
        return [tool.model_copy(update={"input_schema": {**tool.input_schema, **closed}}) for tool in found]

    async def call_tool(self, name: str, arguments: dict[str, Any], *rest: Any, **more: Any) -> Any:
        """Call one, if it takes these arguments."""
        known = {tool.name: tool.input_schema.get("properties", {}) for tool in await self.list_tools()}
        if name in known and (unknown := sorted(arguments.keys() - known[name])):
            raise ToolError(f"{name} does not take {', '.join(unknown)}; it takes {', '.join(known[name])}.")
        try:
            return await super().call_tool(name, arguments, *rest, **more)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(_tell_mistakes(name, error.__cause__)) from None
            raise


def _tell_mistakes(tool: str, error: ValidationError) -> str:
    """What is missing or wrong in the arguments of a call, each argument once."""
    missing: list[str] = []
    wrong: dict[str, list[str]] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        argument = str(one["loc"][0])
        if any(isinstance(place, int) for place in one["loc"]):
            argument = f"each of {argument}"
        if one["type"] == "missing":
            missing.append(argument)
        else:
            wrong.setdefault(argument, []).append(one["msg"].removeprefix("Input should be "))
    found = [f"{tool} needs {', '.join(missing)}."] if missing else []
    # What takes one of several kinds says of each why it is not that; a list says the same of many of its members.
    found += [f"{tool}: {argument} should be {' or '.join(dict.fromkeys(why))}." for argument, why in wrong.items()]
    return " ".join(found)


def make_server(sight: ReadableMeter, *, version: str = "") -> MCPServer[Any]:
    """The server, ready to run over standard input and output or HTTP.

    Args:
        sight: The ledger, prices and budgets that are asked about.
        version: What it says its version is.
    """
    server = _Server("tokenmeter", version=version, instructions=_INSTRUCTIONS, log_level="WARNING")
    _tell_usage(server, sight)
    _tell_budgets(server, sight)
    _tell_prices(server, sight)
    return server


def _tell_usage(server: MCPServer[Any], sight: ReadableMeter) -> None:
    @server.tool(annotations=_READS)
    def report(
        *,
        by: Annotated[
            str | list[str], Field(description="Dimensions to group by, as in `where`: a list, or separated by commas")
        ] = "",
        period: Period = None,
        since: Since = None,
        until: Until = None,
        granularity: Literal["hour", "day", "week", "month", "quarter", "year"] | None = None,
        where: Where = [],  # noqa: B006 - read only, and shown to the assistant
        tz: Zone = "UTC",
        limit: Annotated[int, Field(ge=1, le=1000, description="Rows at most; totals are of all")] = 50,
    ) -> dict[str, Any]:
        """Usage and cost per group and time, dearest first, with totals."""
        with _telling_errors():
            query = _parse_query(period, since, until, where, tz, by=by, granularity=granularity)
            return answers.report(sight, query, most=limit)

    @server.tool(annotations=_READS)
    def entries(
        *,
        period: Period = None,
        since: Since = None,
        until: Until = None,
        where: Where = [],  # noqa: B006 - read only, and shown to the assistant
        tz: Zone = "UTC",
        order: Literal["newest", "oldest"] = "newest",
        limit: Annotated[int, Field(ge=1, le=200)] = 20,
        cursor: Annotated[str | None, Field(description="next_cursor of the page before, with the same query")] = None,
    ) -> dict[str, Any]:
        """Single calls, page by page: who, what, when, how much."""
        with _telling_errors():
            query = _parse_query(period, since, until, where, tz)
            page = answers.entry_page(sight, query, limit=limit, cursor=cursor, newest_first=order == "newest")
            return {"entries": page.items, "next_cursor": page.next}


def _tell_budgets(server: MCPServer[Any], sight: ReadableMeter) -> None:
    @server.tool(annotations=_READS)
    def remaining(
        account: Annotated[
            list[str], Field(description="FIELD=VALUE, such as member=ada or tag:env=prod; none = all")
        ] = [],  # noqa: B006 - as above
        limit: Annotated[int, Field(ge=1, le=1000, description="Balances at most, the fullest first")] = 50,
    ) -> dict[str, Any]:
        """What remains of the budgets that concern somebody: limit, spent, held by calls in flight, when it resets."""
        with _telling_errors():
            return answers.fullest_balances(sight, answers.pairs(account, "account"), most=limit)


def _tell_prices(server: MCPServer[Any], sight: ReadableMeter) -> None:
    @server.tool(annotations=_READS)
    def price(
        model: str,
        provider: Provider = None,
        at: Annotated[str | None, Field(description="Day or instant; none = now")] = None,
    ) -> dict[str, Any]:
        """What a model costs, or cost on a day: each row is US dollars per `per` units of a meter, with its source."""
        with _telling_errors():
            who = provider or estimating.provider_of(model)
            return {"prices": answers.price_rows(sight, model, provider=who, at=at)}

    @server.tool(annotations=_READS)
    def estimate(
        *,
        model: str,
        input_tokens: Annotated[int, Field(ge=0)],
        max_output_tokens: Tokens = None,
        expected_output_tokens: Tokens = None,
        provider: Provider = None,
        processing: Annotated[Literal["batch"] | None, Field(description="batch, for batch prices")] = None,
    ) -> dict[str, Any]:
        """What one call would cost: the likely cost, and the most it can be."""
        with _telling_errors():
            found = estimating.estimate(
                sight,
                model,
                provider=provider,
                input_tokens=input_tokens,
                max_output_tokens=max_output_tokens,
                expected_output_tokens=expected_output_tokens,
                processing=processing,
            )
            return found.to_dict()
