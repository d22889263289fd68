"""One call a row: what gateways and observability services write down.

Each reader takes one row and gives its call, or None for a row that is no call of a provider.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from itertools import chain
from typing import Any, NamedTuple

from tokenmeter.errors import ConfigurationError
from tokenmeter.importing.call import (
    Given,
    ImportedCall,
    answer_of,
    complete,
    count_of,
    decimal_of,
    made_at,
    mapping_of,
    sides_of,
    texts_of,
    told_in,
    without_zero,
)
from tokenmeter.money import EXACT
from tokenmeter.providers import observe

Row = Mapping[str, Any]
#: Anthropic's own default, where a source says how much was written and not for how long.
_UNSAID = "cache_write_5m"
_OK = 200
_NONE: Row = {}
#: LiteLLM's names of providers -> those of the price list, where they differ; it puts them before models, too.
_LITELLM_PROVIDERS = {
    **dict.fromkeys(("azure_ai", "azure_text"), "azure"),
    **dict.fromkeys(("bedrock_converse", "sagemaker", "sagemaker_chat"), "bedrock"),
    **dict.fromkeys(("vertex_ai_beta", "palm"), "vertex_ai"),
    **dict.fromkeys(("codestral", "text-completion-codestral"), "mistral"),
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "text-completion-openai": "openai",
    "together_ai": "together",
    **{name: name for name in ("anthropic", "azure", "bedrock", "cerebras", "cohere", "databricks", "deepseek")},
    **{name: name for name in ("gemini", "groq", "mistral", "moonshot", "novita", "openai", "openrouter")},
    **{name: name for name in ("perplexity", "vertex_ai", "xai", "zai", "baseten", "cloudflare", "deepinfra")},
    **{name: name for name in ("minimax", "ovhcloud", "voyage")},
    "github_copilot": "github-copilot",
}
#: The same of Helicone, in small letters; the others it calls as the price list does.
_HELICONE_PROVIDERS = {"x": "x-ai"}
#: Attribution that programs send along under the names it has here.
_GROUPS = ("team", "project", "organization")
_LITELLM_WHO = (("member", "user"), ("team", "team_id"), ("organization", "organization_id"), ("end_user", "end_user"))


#: What Langfuse, over its versions, calls input, output and their sum.
_LANGFUSE = (
    ("input", "prompt_tokens", "promptTokens", "input_tokens", "inputTokens", "inputUsage"),
    ("output", "completion_tokens", "completionTokens", "output_tokens", "outputTokens", "outputUsage"),
    ("total", "total_tokens", "totalTokens", "totalUsage"),
)
_LANGFUSE_USAGE = ("usage_details", "usageDetails", "usage")


def nested(row: Row, name: str) -> Row:
    """A JSON object in a row; in a CSV it is the text of a cell."""
    value = row.get(name)
    if value is None:
        return _NONE
    if isinstance(value, str) and value.strip().startswith("{"):
        value = _object_of(value.strip())
    return mapping_of(value)


def _object_of(text: str) -> object:
    """An object as JSON, or as Python prints it (data frames saved as CSV hold theirs so); None when it is neither."""
    with suppress(ValueError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    return None


class _Counted(NamedTuple):
    """What a row says of one call's tokens."""

    quantities: Mapping[str, int]
    reasoning: int
    flags: frozenset[str]


def litellm(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A row of LiteLLM's spend logs. Its own response cache, and failures, are no calls of a provider."""
    if str(row.get("cache_hit")).lower() == "true" or row.get("status") == "failure":
        return None
    metadata = nested(row, "metadata")
    counted = _litellm_tokens(row, metadata)
    if counted is None:
        return _without_usage(_cost(row, "spend"))
    spelled = _model(given, row.get("model"))
    theirs = str(row.get("custom_llm_provider") or "")
    prefix, slash, rest = spelled.partition("/")
    if slash and not theirs and prefix in _LITELLM_PROVIDERS:
        theirs = prefix
    model = rest if slash and prefix == theirs else spelled
    return ImportedCall(
        where=where,
        id=_id(row, "request_id"),
        provider=_LITELLM_PROVIDERS.get(theirs, theirs),
        model=model,
        request_model=spelled,
        at=made_at(given, row.get("endTime"), row.get("startTime")),
        quantities=without_zero(counted.quantities),
        reasoning=counted.reasoning,
        flags=counted.flags,
        cost_in_source=_cost(row, "spend"),
        usage=dict(nested(metadata, "usage_object")) or None,
        who=texts_of({name: row.get(column) for name, column in _LITELLM_WHO}),
    )


def _litellm_tokens(row: Row, metadata: Row) -> _Counted | None:
    """Its prompt may hold what the cache had, or stand beside it; None where it counts nothing."""
    usage, more = nested(metadata, "usage_object"), nested(metadata, "additional_usage_values")
    details = nested(usage, "prompt_tokens_details")
    prompt, output = sides_of(row, "prompt_tokens", "completion_tokens", model=row.get("model"))
    if not prompt and not output:
        return None
    read = (
        count_of(usage, "cache_read_input_tokens")
        or count_of(details, "cached_tokens")
        or count_of(more, "cache_read_input_tokens")
    )
    written = count_of(usage, "cache_creation_input_tokens") or count_of(more, "cache_creation_input_tokens")
    text = count_of(details, "text_tokens")
    beside = read + written > prompt or (text == prompt and text > 0 and bool(read + written))
    hour = min(count_of(nested(usage, "cache_creation"), "ephemeral_1h_input_tokens"), written)
    flags = set[str]()
    silent = not usage and not more and "embedding" not in str(row.get("call_type"))  # of what the cache had
    unclear = not beside and read + written and not text and row.get("call_type") == "anthropic_messages"
    if silent or unclear:
        flags.add("cache_uncertain")
    if not metadata and len(str(row.get("metadata") or "").strip("{} ")) and str(row["metadata"]).lstrip()[:1] == "{":
        flags.add("usage_partly_read")  # cut off: what it would say of the cache is not known
    quantities = {
        "input": prompt if beside else prompt - read - written,
        "cache_read": read,
        "cache_write_1h": hour,
        "cache_write_5m": written - hour,
        "output": output,
    }
    reasoning = count_of(nested(usage, "completion_tokens_details"), "reasoning_tokens")
    quantities["output"], reasoning, doubts = answer_of(
        output,
        reasoning,
        prompt=prompt + (read + written if beside else 0),
        total=count_of(usage, "total_tokens") or count_of(row, "total_tokens"),
    )
    return _Counted(quantities, reasoning, doubts.union(flags))


def langfuse(row: Row, where: str, given: Given) -> ImportedCall | None:
    """An observation of Langfuse: generations and embeddings are calls, spans are not."""
    if str(row.get("type")).upper() not in {"GENERATION", "EMBEDDING"}:
        return None
    usage = next((told for name in _LANGFUSE_USAGE if (told := nested(row, name))), _NONE)
    if not usage:  # in columns of their own; those called ``input`` and ``output`` hold what was said
        usage = {name: row[name] for names in _LANGFUSE for name in names[1:] if row.get(name) not in {None, ""}}
    cost = _cost(row, "total_cost", "calculatedTotalCost", "totalCost")
    if not any(value and not isinstance(value, dict) and str(value) != "0" for value in usage.values()):
        if name := next((name for name in _LANGFUSE_USAGE if row.get(name) and not nested(row, name)), None):
            raise ConfigurationError(f"its {name} is no JSON object, so that what it counts would be missing")
        return _without_usage(cost)
    counted = _langfuse_tokens(usage, answers=str(row["type"]).upper() == "GENERATION")
    return ImportedCall(
        where=where,
        id=_id(row, "id"),
        model=_model(given, *(row.get(name) for name in ("provided_model_name", "providedModelName", "model"))),
        at=made_at(given, row.get("start_time"), row.get("startTime")),
        quantities=without_zero(counted.quantities),
        reasoning=counted.reasoning,
        flags=counted.flags,
        cost_in_source=cost,
        usage=dict(usage),
        who=texts_of({"member": told_in(row, "user_id", "userId")}),
    )


def _langfuse_tokens(usage: Row, *, answers: bool) -> _Counted:
    """Its keys are disjoint, unless their total says that the cache and reasoning are inside.

    Args:
        usage: What it counts.
        answers: Whether the model writes.

    Raises:
        ConfigurationError: none of its counts is known, or one side is not there and no total tells of it.
    """
    read = _first(usage, "input_cached_tokens", "input_cache_read", "cache_read_input_tokens")
    hour = _first(usage, "input_cache_creation_1h")
    short = _first(usage, "input_cache_creation_5m")
    unsaid = _first(usage, "input_cache_creation", "cache_creation_input_tokens")
    written = hour + short if hour or short else unsaid
    reasoning = _first(usage, "output_reasoning_tokens", "output_reasoning")
    before, answer, total = (_first(usage, *names) for names in _LANGFUSE)
    inside = bool(read + written + reasoning) and total == before + answer
    quantities = {
        "input": before - read - written if inside else before,
        "cache_read": read,
        "cache_write_1h": hour,
        "cache_write_5m": written - hour,
        "output": answer if inside else answer + reasoning,
    }
    doubts: frozenset[str] = frozenset()
    if inside:
        quantities["output"], reasoning, doubts = answer_of(answer, reasoning, prompt=before, total=total)
    if not any(quantities.values()):
        raise ConfigurationError(f"its usage has no count that is known, only {', '.join(usage)}: record it by hand")
    sides = ((_LANGFUSE[0], answer), (_LANGFUSE[1], before if answers else 0))
    for names, needed in sides:
        if needed and not total and all(usage.get(name) is None or usage[name] == "" for name in names):
            raise ConfigurationError(f"it does not say its {names[0]}")
    flags = {"cache_lifetime_assumed"} if unsaid and not (hour or short) else set[str]()
    if read + written + reasoning and not total:
        flags.add("cache_uncertain")  # nothing tells whether it is inside
    rest = total - before - answer - sum((read, written, reasoning)) if total and not inside else 0
    known = {"unit", *chain.from_iterable(_LANGFUSE)}
    if rest or (not any((read, hour, short, unsaid, reasoning)) and set(usage) - known):
        flags.add("usage_partly_read")
    return _Counted(quantities, reasoning, doubts.union(flags))


def helicone(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A request of Helicone: the provider's own usage in the body goes before the flat columns.

    What failed, and what its own cache answered, is no call of a provider.
    """
    if _failed(row, "response_status") or str(row.get("cache_reference_id") or _UNCACHED) != _UNCACHED:
        return None
    body = nested(row, "response_body")
    names = (row.get(name) for name in ("response_model", "request_model", "model_override"))
    theirs = str(row.get("provider") or "").lower()
    properties = nested(row, "request_properties")
    call = ImportedCall(
        where=where,
        id=str(body.get("id") or row.get("response_id") or _id(row, "request_id")),
        provider=_HELICONE_PROVIDERS.get(theirs, theirs),
        model=_model(given, *names, body.get("model")),
        at=made_at(given, row.get("response_created_at"), row.get("request_created_at")),
        cost_in_source=_cost(row, "costUSD", "cost_usd"),
        who=texts_of({"member": row.get("request_user_id"), **{name: properties.get(name) for name in _GROUPS}}),
    )
    if mapping_of(body.get("usage")):
        return _observed(call, body, given)
    prompt, output = sides_of(row, "prompt_tokens", "completion_tokens", model=call.model)
    total = count_of(row, "total_tokens")
    read, written = count_of(row, "prompt_cache_read_tokens"), count_of(row, "prompt_cache_write_tokens")
    if not prompt and not output:
        return _without_usage(call.cost_in_source)
    beside = read + written > prompt or total == prompt + output + read + written
    call.quantities = without_zero(
        {
            "input": prompt if beside else prompt - read - written,
            "cache_read": read,
            _UNSAID: written,
            "output": output,
        }
    )
    if not beside and total != prompt + output:
        doubts = {"cache_uncertain": read + written, "total_mismatch": total}
        call.flags = frozenset(name for name, is_so in doubts.items() if is_so)
    return call


def openrouter(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A generation of OpenRouter's activity log; with an own key the provider's price is another cost."""
    read = count_of(row, "tokens_cached")
    prompt, output = sides_of(row, "tokens_prompt", "tokens_completion", model=row.get("model_permaslug"))
    if not prompt and not output:
        return _without_usage(_cost(row, "cost_total"))
    cost = _cost(row, "cost_total")
    own = _cost(row, "byok_usage_inference")
    answer, reasoning, doubts = answer_of(output, count_of(row, "tokens_reasoning"))
    return ImportedCall(
        where=where,
        id=_id(row, "generation_id"),
        provider="openrouter",
        model=_model(given, row.get("model_permaslug")),
        at=made_at(given, row.get("created_at")),
        quantities=without_zero({"input": prompt - read, "cache_read": read, "output": answer}),
        reasoning=reasoning,
        flags=doubts.union({"own_key"} if own else ()),
        cost_in_source=cost,
        usage={name: row[name] for name in row if name.startswith("tokens_")},
        who=texts_of({"end_user": row.get("user")}),
    )


def portkey(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A log of Portkey: its costs are cents; a hit of its cache is no call of a provider."""
    if str(row.get("cache_status")).upper() in {"HIT", "SEMANTIC HIT"} or str(row.get("is_success")).lower() in {
        "0",
        "false",
    }:
        return None
    if _failed(row, "response_status_code"):
        return None
    body = nested(nested(row, "response"), "body") or nested(row, "response")
    metadata = nested(row, "metadata")
    is_dollars = str(row.get("cost_currency") or "USD").upper() == "USD"
    cents = _cost(row, "cost") if is_dollars else None
    call = ImportedCall(
        where=where,
        id=str(body.get("id") or _id(row, "id")),
        provider=str(row.get("ai_org") or ""),
        model=_model(given, row.get("ai_model"), body.get("model")),
        at=made_at(given, row.get("created_at")),
        cost_in_source=None if cents is None else cents.scaleb(-2, context=EXACT),
        who=texts_of({"member": metadata.get("_user"), **{name: metadata.get(name) for name in _GROUPS}}),
    )
    if mapping_of(body.get("usage")):
        return _observed(call, body, given)
    prompt, output = sides_of(row, "req_units", "res_units", model=call.model)
    call.quantities = without_zero({"input": prompt, "output": output})
    call.flags = frozenset({"cache_uncertain"})
    return call if call.quantities else _without_usage(call.cost_in_source)


#: What a body says that it is -> the SDK method path that gives such.
_METHODS = {
    "chat.completion": "chat.completions",
    "list": "embeddings",
    "message": "messages",
    "response": "responses",
    "text_completion": "completions",
}
#: Helicone's way to say that no cache answered.
_UNCACHED = "00000000-0000-0000-0000-000000000000"


def _failed(row: Row, name: str) -> bool:
    """Whether the status of an answer, where it is told, is not one of success."""
    status = row.get(name)
    return status not in {None, ""} and int(decimal_of(status, name)) // 100 != _OK // 100


def _observed(call: ImportedCall, body: Row, given: Given) -> ImportedCall:
    """A call with the usage of the body that the provider sent; a body that names no model is of the row's."""
    call.endpoint = _METHODS.get(str(body.get("object") or body.get("type")), "")
    complete(call, given)
    call.observation = observe(
        body if body.get("model") else {**body, "model": call.model},
        provider=call.provider,
        endpoint=call.endpoint,
        processing=call.processing,
        cost_unit=given.cost_unit(call.provider),
    )
    return call


def _without_usage(cost: Decimal | None) -> ImportedCall | None:
    """A row without tokens is no call, unless it says that it cost something.

    Raises:
        ConfigurationError: it does.
    """
    if cost:
        raise ConfigurationError(f"it cost ${cost:f} and states no tokens: record it by hand")
    return None


def _first(values: Row, *names: str) -> int:
    return next((count for name in names if (count := count_of(values, name))), 0)


def _id(row: Row, name: str) -> str:
    value = row.get(name)
    if value in {None, ""}:
        raise ConfigurationError(f"it has no {name}, so that it could be counted twice")
    return str(value)


def _model(given: Given, *names: object) -> str:
    """The first name that the row has, or that is given."""
    name = next((name for name in (*names, given.model) if name), None)
    if name is None:
        raise ConfigurationError("it names no model: give --model")
    return str(name)


def _cost(row: Row, *names: str) -> Decimal | None:
    value = told_in(row, *names)
    return None if value is None else decimal_of(value, names[0])
