"""One call a row: logs of gateways and observability services, responses as providers gave them, mapped rows.

Each reader takes one row and gives its call, or None for a row that is no call of a provider.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from typing import Any

from tokenmeter.dimensions import ALL_METERS, WHO
from tokenmeter.errors import ConfigurationError
from tokenmeter.importing.call import (
    Given,
    ImportedCall,
    at_path,
    count_of,
    decimal_of,
    instant_of,
    is_doubtful,
    mapping_of,
    provider_of,
    without_zero,
)
from tokenmeter.money import EXACT
from tokenmeter.providers import observe

Row = Mapping[str, Any]
_ENDPOINTS = {"anthropic": "messages", "google": "models.generate_content"}
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
    **{name: name for name in ("perplexity", "vertex_ai", "xai", "zai")},
}
_LITELLM_WHO = (("member", "user"), ("team", "team_id"), ("organization", "organization_id"), ("end_user", "end_user"))


#: What Langfuse, over its versions, calls input, output and their sum.
_LANGFUSE = (
    ("input", "prompt_tokens", "promptTokens", "input_tokens", "inputTokens", "inputUsage"),
    ("output", "completion_tokens", "completionTokens", "output_tokens", "outputTokens", "outputUsage"),
    ("total", "total_tokens", "totalTokens", "totalUsage"),
)


def endpoint_of(provider: str) -> str:
    """The method a gateway's call is recorded under."""
    return _ENDPOINTS.get(provider, "chat.completions")


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


def litellm(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A row of LiteLLM's spend logs. Its own response cache, and failures, are no calls of a provider."""
    if str(row.get("cache_hit")).lower() == "true" or row.get("status") == "failure":
        return None
    metadata = nested(row, "metadata")
    usage = nested(metadata, "usage_object")
    more = nested(metadata, "additional_usage_values")
    details = nested(usage, "prompt_tokens_details")
    prompt, output = count_of(row, "prompt_tokens"), count_of(row, "completion_tokens")
    if not prompt and not output:
        return _without_usage(_cost(row, "spend"))
    read = (
        count_of(usage, "cache_read_input_tokens")
        or count_of(details, "cached_tokens")
        or count_of(more, "cache_read_input_tokens")
    )
    written = count_of(usage, "cache_creation_input_tokens") or count_of(more, "cache_creation_input_tokens")
    text = count_of(details, "text_tokens")
    beside = read + written > prompt or (text == prompt and text > 0 and bool(read + written))
    uncertain = not beside and bool(read + written) and not text and row.get("call_type") == "anthropic_messages"
    creation = nested(usage, "cache_creation")
    hour = min(count_of(creation, "ephemeral_1h_input_tokens"), written)
    flags = {"cache_uncertain"} if uncertain else set[str]()
    if not metadata and len(str(row.get("metadata") or "").strip("{} ")) and str(row["metadata"]).lstrip()[:1] == "{":
        flags.add("usage_partly_read")  # cut off: what it would say of the cache is not known
    spelled = _model(row, "model")
    theirs = str(row.get("custom_llm_provider") or "")
    prefix, slash, rest = spelled.partition("/")
    if slash and not theirs and prefix in _LITELLM_PROVIDERS:
        theirs = prefix
    model = rest if slash and prefix == theirs else spelled
    provider = _LITELLM_PROVIDERS.get(theirs, theirs) or provider_of(model) or given.provider or ""
    who = {name: str(value) for name, column in _LITELLM_WHO if (value := row.get(column))}
    return ImportedCall(
        where=where,
        id=_id(row, "request_id"),
        provider=_provider(provider),
        model=model,
        request_model=spelled,
        at=instant_of(row.get("endTime") or row.get("startTime"), tz="UTC"),
        endpoint=endpoint_of(provider),
        quantities=without_zero({
            "input": prompt if beside else prompt - read - written,
            "cache_read": read,
            "cache_write_1h": hour,
            "cache_write_5m": written - hour,
            "output": output,
        }),
        reasoning=count_of(nested(usage, "completion_tokens_details"), "reasoning_tokens"),
        flags=frozenset(flags),
        cost_in_source=_cost(row, "spend"),
        usage=dict(usage) or None,
        who=who,
    )  # fmt: skip


def langfuse(row: Row, where: str, given: Given) -> ImportedCall | None:
    """An observation of Langfuse: generations and embeddings are calls, spans are not."""
    if str(row.get("type")).upper() not in {"GENERATION", "EMBEDDING"}:
        return None
    usage = nested(row, "usage_details") or nested(row, "usageDetails") or nested(row, "usage")
    if not usage:  # in columns of their own; those called ``input`` and ``output`` hold what was said
        usage = {name: row[name] for names in _LANGFUSE for name in names[1:] if row.get(name) not in {None, ""}}
    cost = _cost(row, "total_cost", "calculatedTotalCost", "totalCost")
    if not any(value and not isinstance(value, dict) and str(value) != "0" for value in usage.values()):
        return _without_usage(cost)
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
    if not any(quantities.values()):
        raise ConfigurationError(f"its usage has no count that is known, only {', '.join(usage)}: record it by hand")
    known = {"unit", *chain.from_iterable(_LANGFUSE)}
    listed = [read, hour, short, unsaid, reasoning]
    rest = total - before - answer - sum((read, written, reasoning)) if total and not inside else 0
    model = row.get("provided_model_name") or row.get("providedModelName") or row.get("model") or given.model
    provider = given.provider or provider_of(None if model is None else str(model))
    flags = {"cache_lifetime_assumed"} if unsaid and not (hour or short) else set[str]()
    if rest or (not any(listed) and set(usage) - known):
        flags.add("usage_partly_read")
    return ImportedCall(
        where=where,
        id=_id(row, "id"),
        provider=_provider(provider),
        model=_named(model),
        at=instant_of(row.get("start_time") or row.get("startTime"), tz="UTC"),
        endpoint=endpoint_of(str(provider)),
        quantities=without_zero(quantities),
        reasoning=reasoning,
        flags=frozenset(flags),
        cost_in_source=cost,
        usage=dict(usage),
        who={"member": str(user)} if (user := row.get("user_id") or row.get("userId")) else {},
    )


def helicone(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A request of Helicone: the provider's own usage in the body goes before the flat columns.

    What failed, and what its own cache answered, is no call of a provider.
    """
    if _failed(row, "response_status") or str(row.get("cache_reference_id") or _UNCACHED) != _UNCACHED:
        return None
    body = nested(row, "response_body")
    model = row.get("response_model") or row.get("request_model") or row.get("model_override")
    provider = str(row.get("provider") or "").lower() or provider_of(None if model is None else str(model))
    provider = given.provider or provider
    at = instant_of(row.get("response_created_at") or row.get("request_created_at"), tz="UTC")
    who = {"member": str(row["request_user_id"])} if row.get("request_user_id") else {}
    properties = nested(row, "request_properties")
    who |= {name: str(properties[name]) for name in ("team", "project", "organization") if properties.get(name)}
    call = ImportedCall(
        where=where,
        id=str(body.get("id") or row.get("response_id") or _id(row, "request_id")),
        provider=_provider(provider),
        model=_named(model),
        at=at,
        endpoint=endpoint_of(str(provider)),
        cost_in_source=_cost(row, "costUSD", "cost_usd"),
        who=who,
    )
    if mapping_of(body.get("usage")):
        return _observed(call, body, given)
    prompt, total = count_of(row, "prompt_tokens"), count_of(row, "total_tokens")
    output = count_of(row, "completion_tokens")
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
    decided = beside or total == prompt + output
    call.flags = frozenset({"cache_uncertain"} if read + written and not decided else ())
    return call


def openrouter(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A generation of OpenRouter's activity log; with an own key the provider's price is another cost."""
    read = count_of(row, "tokens_cached")
    prompt, output = count_of(row, "tokens_prompt"), count_of(row, "tokens_completion")
    if not prompt and not output:
        return _without_usage(_cost(row, "cost_total"))
    cost = _cost(row, "cost_total")
    own = _cost(row, "byok_usage_inference")
    who = {"end_user": str(row["user"])} if row.get("user") else {}
    return ImportedCall(
        where=where,
        id=_id(row, "generation_id"),
        provider=given.provider or "openrouter",
        model=_model(row, "model_permaslug"),
        at=instant_of(row.get("created_at"), tz="UTC"),
        endpoint="chat.completions",
        quantities=without_zero({"input": prompt - read, "cache_read": read, "output": output}),
        reasoning=count_of(row, "tokens_reasoning"),
        flags=frozenset({"own_key"} if own else ()),
        cost_in_source=cost,
        usage={name: row[name] for name in row if name.startswith("tokens_")},
        who=who,
    )


def portkey(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A log of Portkey: its costs are cents; a hit of its cache is no call of a provider."""
    if str(row.get("cache_status")).upper() == "HIT" or str(row.get("is_success")).lower() in {"0", "false"}:
        return None
    if _failed(row, "response_status_code"):
        return None
    body = nested(nested(row, "response"), "body") or nested(row, "response")
    provider = given.provider or str(row.get("ai_org") or provider_of(str(row.get("ai_model"))) or "")
    metadata = nested(row, "metadata")
    who = {"member": str(metadata["_user"])} if metadata.get("_user") else {}
    who |= {name: str(metadata[name]) for name in ("team", "project", "organization") if metadata.get(name)}
    is_dollars = str(row.get("cost_currency") or "USD").upper() == "USD"
    cents = _cost(row, "cost") if is_dollars else None
    call = ImportedCall(
        where=where,
        id=str(body.get("id") or _id(row, "id")),
        provider=_provider(provider),
        model=_model(row, "ai_model"),
        at=instant_of(row.get("created_at"), tz="UTC"),
        endpoint=endpoint_of(provider),
        cost_in_source=None if cents is None else cents.scaleb(-2, context=EXACT),
        who=who,
    )
    if mapping_of(body.get("usage")):
        return _observed(call, body, given)
    call.quantities = without_zero({"input": count_of(row, "req_units"), "output": count_of(row, "res_units")})
    call.flags = frozenset({"cache_uncertain"})
    return call if call.quantities else _without_usage(call.cost_in_source)


#: Helicone's way to say that no cache answered.
_UNCACHED = "00000000-0000-0000-0000-000000000000"


def _failed(row: Row, name: str) -> bool:
    """Whether the status of an answer, where it is told, is not one of success."""
    status = row.get(name)
    return status not in {None, ""} and int(decimal_of(status, name)) // 100 != _OK // 100


def _observed(call: ImportedCall, body: Row, given: Given) -> ImportedCall:
    """A call with the usage of the body that the provider sent; a body that names no model is of the row's."""
    named = body if body.get("model") else {**body, "model": call.model}
    call.observation = observe(
        named, provider=call.provider, endpoint=_method(body, call), cost_unit=given.cost_unit(call.provider)
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


def _method(body: Row, call: ImportedCall) -> str:
    kind = body.get("object") or body.get("type")
    return {"response": "responses", "message": "messages", "list": "embeddings"}.get(str(kind), call.endpoint)


def _first(values: Row, *names: str) -> int:
    return next((count for name in names if (count := count_of(values, name))), 0)


def _id(row: Row, name: str) -> str:
    value = row.get(name)
    if value in {None, ""}:
        raise ConfigurationError(f"it has no {name}, so that it could be counted twice")
    return str(value)


def _model(row: Row, name: str) -> str:
    return _named(row.get(name))


def _named(model: object) -> str:
    if not model:
        raise ConfigurationError("it names no model: give --model")
    return str(model)


def _provider(name: str | None) -> str:
    if not name:
        raise ConfigurationError("whose model it is cannot be told: give --provider")
    return name


def _cost(row: Row, *names: str) -> Decimal | None:
    value = next((row[name] for name in names if row.get(name) not in {None, ""}), None)
    return None if value is None else decimal_of(value, names[0])


#: ``object`` (OpenAI) or ``type`` (Anthropic) of a response body -> provider and SDK method path.
_KINDS = {
    "chat.completion": ("openai", "chat.completions"),
    "text_completion": ("openai", "completions"),
    "response": ("openai", "responses"),
    "list": ("openai", "embeddings"),
    "message": ("anthropic", "messages"),
}
#: What a map of fields can name; ``tag:NAME`` adds any tag.
FIELDS = (
    *("id", "time", "model", "provider", "endpoint", "service_tier", "processing", "cost", "reasoning"),
    *WHO,
    *("input_uncached", "cache_write"),
    *ALL_METERS,
)


def response(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A provider's response, or a line of a batch's output file; None when it failed.

    Raises:
        ConfigurationError: what it is, when it was made, or its id cannot be told.
    """
    body, batch, line_id = _body(row)
    if body is None:
        return None
    provider, endpoint = _where(body, given)
    processing = given.processing or ("batch" if batch else None)
    if given.model and not body.get("model"):
        body = {**body, "model": given.model}
    seen = observe(
        body,
        provider=provider,
        endpoint=endpoint,
        processing=processing,
        cost_unit=given.cost_unit(provider),
    )
    if not seen.consumptions:
        if _says_usage(body):
            raise ConfigurationError("its usage cannot be read, so that it would be missing")
        return None
    moment = _moment(body) or _moment(row) or given.at
    if moment is None:
        raise ConfigurationError("the response does not say when it was made: give --at")
    response_id = seen.response_id or line_id
    if response_id is None:
        raise ConfigurationError("the response has no id, so that it could be counted twice")
    return ImportedCall(
        where=where,
        id=response_id,
        provider=provider,
        model=seen.response_model,
        at=moment,
        endpoint=endpoint,
        observation=seen,
    )


def _body(row: Row) -> tuple[Row | None, bool, str | None]:
    """The body, whether it ran in a batch, and the id of the batch's line; no body where the call failed."""
    if "custom_id" in row:
        answer: object = row.get("response") or row.get("result") or {}
        held = mapping_of(answer)
        if answer and not held:
            raise ConfigurationError("a batch line whose result is no JSON object")
        body = mapping_of(held.get("body") or held.get("message"))
        if not body or held.get("status_code", _OK) != _OK:
            return None, True, None
        return body, True, row.get("id")
    if _is_response(row):
        return row, False, None
    nested = [one for value in row.values() for one in (value, *mapping_of(value).values()) if _is_response(one)]
    if len(nested) == 1:
        return mapping_of(nested[0]), False, None
    if nested:
        raise ConfigurationError(f"{len(nested)} responses in one line: give each a line of its own")
    return row, False, None


def _is_response(value: object) -> bool:
    body = mapping_of(value)
    kind = body.get("object") or body.get("type")
    return str(kind) in _KINDS and isinstance(body.get("usage"), dict)


def _where(body: Row, given: Given) -> tuple[str, str]:
    kind = body.get("object") or body.get("type")
    provider, endpoint = _KINDS.get(str(kind), (None, None))
    provider, endpoint = given.provider or provider, given.endpoint or endpoint
    if provider is None or endpoint is None:
        has = ", ".join(list(body)[:12]) or "nothing"
        what = "it is no log that is known" if kind is None else f"what kind of response {kind!r} is cannot be told"
        raise ConfigurationError(
            f"{what}: give --provider and --endpoint of a response, or say what is where with "
            f"--map id=...,time=...,model=...,input=...,output=...; it has {has}"
        )
    return provider, endpoint


def _moment(content: Row) -> datetime | None:
    for name in ("created", "created_at", "timestamp", "time"):
        value = content.get(name)
        if value is not None and not isinstance(value, bool):
            with suppress(ConfigurationError):
                return instant_of(value, tz="UTC").astimezone(UTC)
    return None


def _says_usage(content: Row) -> bool:
    """Whether a response has a usage that is not simply nothing."""
    usage: object = content.get("usage")
    return any(told.values()) if (told := mapping_of(usage)) else bool(usage)


def check_fields(fields: Mapping[str, str]) -> None:
    """Refuse a map that cannot work.

    Raises:
        ConfigurationError: an unknown name, or an id, time or count missing.
    """
    for name in fields:
        if name not in FIELDS and not name.startswith("tag:"):
            raise ConfigurationError(f"--map: unknown name {name!r}; use {', '.join(FIELDS)} or tag:NAME.")
    missing = [name for name in ("id", "time") if name not in fields]
    if missing:
        raise ConfigurationError(f"--map: say where the {' and the '.join(missing)} is: id=..., time=....")
    if "input" in fields and "input_uncached" in fields:
        raise ConfigurationError("--map: give 'input' (with what was cached) or 'input_uncached', not both.")
    if not set(fields) & {*ALL_METERS, "input_uncached"}:
        raise ConfigurationError("--map: name at least one count, such as input=... or output=....")


def _assumed(time: object, tz: str | None, *, unsaid: bool) -> Iterator[str]:
    if unsaid:
        yield "cache_lifetime_assumed"
    if is_doubtful(time, tz):
        yield "time_uncertain"


def mapped(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A row of a shape of one's own, by a map of fields.

    ``input`` is as most logs count it, with what was read from and written to a cache; where the cached tokens are more
    than it, it was without them. ``input_uncached`` is always without.

    Raises:
        ConfigurationError: a field that is needed is not there, or is not what it should be.
    """
    fields = given.fields
    found = {name: at_path(row, path) for name, path in fields.items()}
    lists = [path for name, path in fields.items() if isinstance(found[name], list | dict)]
    if lists:
        raise ConfigurationError(f"{lists[0]!r} is no single value: name what lies in it, such as {lists[0]}.0")
    if found.get("id") in {None, ""}:
        raise ConfigurationError(f"there is no {fields['id']!r} (the id)")
    if found.get("time") in {None, ""}:
        raise ConfigurationError(f"there is no {fields['time']!r} (the time)")
    model = str(found.get("model") or given.model or "") or None
    provider = str(found.get("provider") or given.provider or provider_of(model) or "")
    if not provider:
        raise ConfigurationError("whose model it is cannot be told: give --provider")
    quantities = {name: count_of(found, name) for name in ALL_METERS if name in found}
    unsaid = count_of(found, "cache_write")
    if unsaid:
        quantities["cache_write_5m"] = quantities.get("cache_write_5m", 0) + unsaid
    cached = sum(count for name, count in quantities.items() if name.startswith("cache_"))
    if "input_uncached" in found:
        quantities["input"] = count_of(found, "input_uncached")
    elif quantities.get("input", 0) >= cached:
        quantities["input"] = quantities.get("input", 0) - cached
    quantities = without_zero(quantities)
    if not quantities:
        return None
    cost = found.get("cost")
    return ImportedCall(
        where=where,
        id=str(found["id"]),
        provider=provider,
        model=model,
        at=instant_of(found["time"], tz=given.tz),
        endpoint=str(found.get("endpoint") or given.endpoint or endpoint_of(provider)),
        quantities=quantities,
        reasoning=count_of(found, "reasoning"),
        service_tier=str(found["service_tier"]) if found.get("service_tier") else None,
        processing=str(found["processing"]) if found.get("processing") else given.processing,
        flags=frozenset(_assumed(found["time"], given.tz, unsaid=bool(unsaid))),
        cost_in_source=None if cost in {None, ""} else decimal_of(cost, "cost"),
        who={name: str(found[name]) for name in WHO if found.get(name)},
        tags={
            name.removeprefix("tag:"): str(value) for name, value in found.items() if name.startswith("tag:") and value
        },
    )
