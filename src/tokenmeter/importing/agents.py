"""What coding agents write down: Claude Code, Codex, Gemini CLI, opencode, aider.

A call is spread over lines, and lines are copied between files, so each reader takes all files of its kind and gives
each call once. Transcripts are the agents' own account; the provider's console decides what is billed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tokenmeter.errors import ConfigurationError
from tokenmeter.importing.call import (
    Given,
    ImportedCall,
    count_of,
    decimal_of,
    endpoint_of,
    instant_of,
    mapping_of,
    object_in,
    provider_of,
    without_zero,
)
from tokenmeter.values import dataclass

Row = Mapping[str, Any]
_SECOND = timedelta(seconds=1)
#: What the first Codex logs, which name no model, ran with.
_CODEX_MODEL = "gpt-5"
_TOTALS = (
    *("input_tokens", "cached_input_tokens", "cache_write_input_tokens"),
    *("output_tokens", "reasoning_output_tokens"),
)


#: A call, or where one stands that cannot be right, and why.
Told = ImportedCall | tuple[str, str]


class _SeenMessage(NamedTuple):
    sidechain: bool
    output: int
    call: ImportedCall


class ClaudeCode:
    """Transcripts of Claude Code.

    One message is a line per content block, and is copied into resumed sessions and subagents' files: the line with the
    highest output counts, of the main conversation before a sidechain's.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self._best: dict[str, _SeenMessage] = {}
        self._told: dict[tuple[str, str | None], str] = {}

    def read(self, row: Row, where: str) -> int:
        """Take a line; how many calls it tells."""
        message = mapping_of(row.get("message"))
        if row.get("type") != "assistant" or message.get("model") == "<synthetic>" or row.get("isApiErrorMessage"):
            return 0
        usage = object_in(message, "usage")
        if not usage:
            return 0
        name = message.get("id")
        if not name:
            raise ConfigurationError("the message has no id, so that it could be counted twice")
        seen = _SeenMessage(
            bool(row.get("isSidechain")), count_of(usage, "output_tokens"), self._call(row, message, usage, where)
        )
        before = self._best.get(str(name))
        if before is None or (not seen.sidechain, seen.output) > (not before.sidechain, before.output):
            self._best[str(name)] = seen
        return 1

    def calls(self) -> Iterator[Told]:
        """Each message once."""
        for seen in self._best.values():
            yield seen.call

    def _call(self, row: Row, message: Row, usage: Row, where: str) -> ImportedCall:
        created = mapping_of(usage.get("cache_creation"))
        short, hour = (count_of(created, f"ephemeral_{name}_input_tokens") for name in ("5m", "1h"))
        rest = max(count_of(usage, "cache_creation_input_tokens") - short - hour, 0)
        tools = mapping_of(usage.get("server_tool_use"))
        model = str(message.get("model") or self._given.model or "")
        tier = usage.get("service_tier")
        folder = str(row.get("cwd") or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
        geo = usage.get("inference_geo")
        return ImportedCall(
            where=where,
            id=str(message["id"]),
            provider=self._given.provider or provider_of(model) or "anthropic",
            model=model,
            at=instant_of(row.get("timestamp"), tz="UTC"),
            endpoint="messages",
            quantities=without_zero({
                "input": count_of(usage, "input_tokens"),
                "cache_read": count_of(usage, "cache_read_input_tokens"),
                "cache_write_5m": short + rest,
                "cache_write_1h": hour,
                "output": count_of(usage, "output_tokens"),
                "web_searches": count_of(tools, "web_search_requests"),
            }),
            service_tier=None if tier in {None, "standard"} else str(tier),
            processing="batch" if tier == "batch" else self._given.processing,
            speed="fast" if usage.get("speed") == "fast" else None,
            geo=None if geo in {None, "", "global", "not_available"} else str(geo),
            flags=frozenset({"cache_lifetime_assumed"} if rest else ()),
            cost_in_source=None if row.get("costUSD") is None else decimal_of(row["costUSD"], "costUSD"),
            usage={name: value for name, value in usage.items() if name != "iterations"},
            who={"project": folder} if folder else {},
            tags=_tags(session=row.get("sessionId"), agent=row.get("agentId")),
            grows=True,
        )  # fmt: skip


class _CodexCount(NamedTuple):
    """What one line says: the running total, and that of the last call."""

    at: datetime
    model: str | None
    total: tuple[int, ...]
    last: tuple[int, ...] | None
    where: str


@dataclass(slots=True)
class _CodexSession:
    """A session of Codex as its file tells it."""

    name: str | None = None
    parent: str | None = None
    started: datetime | None = None
    folder: str = ""
    model: str | None = None
    counts: list[_CodexCount] = field(default_factory=list["_CodexCount"])


class Codex:
    """Rollouts of Codex: running totals, of which each call is the difference.

    A total that did not move is a repeat; forks and subagents begin with their parent's totals again.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self._files: dict[str, _CodexSession] = {}

    def read(self, row: Row, where: str) -> int:
        """Take a line; how many calls it tells."""
        session = self._files.setdefault(where.rpartition(":")[0], _CodexSession())
        payload = mapping_of(row.get("payload"))
        kind = row.get("type")
        if kind == "session_meta" and session.name is None:
            session.name = str(payload.get("id") or "")
            session.started = instant_of(payload.get("timestamp") or row.get("timestamp"), tz="UTC")
            session.folder = str(payload.get("cwd") or "").rstrip("/").rpartition("/")[2]
            session.parent = _parent(payload)
        elif kind == "turn_context":
            session.model = str(payload["model"]) if payload.get("model") else session.model
        elif kind == "event_msg" and payload.get("type") == "token_count" and object_in(payload, "info"):
            info = mapping_of(payload["info"])
            last = object_in(info, "last_token_usage")
            session.counts.append(
                _CodexCount(
                    instant_of(row.get("timestamp"), tz="UTC"),
                    session.model,
                    _total(object_in(info, "total_token_usage")),
                    _total(last) if last else None,
                    where,
                )
            )
            return 1
        return 0

    def calls(self) -> Iterator[Told]:
        """Each call once, over sessions, their forks, and archived copies."""
        totals = {one.name: {count.total for count in one.counts} for one in self._files.values()}
        for session in self._files.values():
            yield from self._of_session(session, totals.get(session.parent) if session.parent else None)

    def _of_session(self, session: _CodexSession, inherited: set[tuple[int, ...]] | None) -> Iterator[Told]:
        before: tuple[int, ...] = (0,) * len(_TOTALS)
        run, own = 0, session.parent is None
        # Lines of parallel writers may stand out of order: a total that falls is a new run only where time went on.
        for at, model, total, last, where in sorted(session.counts, key=lambda one: (one.at, one.total)):
            now = total
            if last and not any(total):  # only the call itself is told
                now = tuple(count + known for count, known in zip(last, before, strict=True))
            if not own:  # what a fork repeats of its parent
                at_once = session.started is not None and at - session.started <= _SECOND
                if now in inherited if inherited is not None else at_once:
                    before = now
                    continue
                own = True
            if now == before:
                continue
            moved = tuple(count - known for count, known in zip(now, before, strict=True))
            fell = min(moved) < 0
            run += fell
            used = (last or now) if fell else moved
            before = now
            try:
                yield self._call(session, at, model, used, where, identity=f"{session.name}:{run}:{now[0]}+{now[3]}")
            except ConfigurationError as error:
                yield where, str(error)

    def _call(
        self, session: _CodexSession, at: datetime, model: str | None, used: Sequence[int], where: str, *, identity: str
    ) -> ImportedCall:
        whole, cached, written, output, reasoning = used
        if not session.name:
            raise ConfigurationError("the session has no id, so that it could be counted twice")
        name = model or self._given.model or _CODEX_MODEL
        return ImportedCall(
            where=where,
            id=f"codex:{identity}",
            provider=self._given.provider or "openai",
            model=name,
            at=at,
            endpoint="responses",
            quantities=without_zero(
                {
                    "input": whole - cached - written,
                    "cache_read": cached,
                    "cache_write_30m": written,
                    "output": output,
                }
            ),
            reasoning=reasoning,
            flags=frozenset(() if model or self._given.model else {"model_assumed"}),
            who={"project": session.folder} if session.folder else {},
            tags=_tags(session=session.name),
        )


def _parent(payload: Row) -> str | None:
    spawned = mapping_of(mapping_of(mapping_of(payload.get("source")).get("subagent")).get("thread_spawn"))
    parent = payload.get("forked_from_id") or spawned.get("parent_thread_id")
    return str(parent) if parent else None


def _total(usage: Row) -> tuple[int, ...]:
    return tuple(count_of(usage, name) for name in _TOTALS)


class Gemini:
    """Chats of the Gemini CLI. A message is written again under its id as it grows: the last one counts."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._last: dict[str, ImportedCall] = {}
        self._session: dict[str, str] = {}

    def read(self, row: Row, where: str) -> int:
        """Take a line or a whole chat; how many calls it tells."""
        file = where.rpartition(":")[0]
        if row.get("sessionId"):
            self._session[file] = str(row["sessionId"])
        messages = row.get("messages")
        if isinstance(messages, list):
            found = [self.read(mapping_of(one), f"{where}.{at}") for at, one in enumerate(messages, 1)]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            return sum(found)
        if row.get("type") != "gemini":
            return 0
        tokens = object_in(row, "tokens")
        if not tokens:
            return 0
        if not row.get("id"):
            raise ConfigurationError("the message has no id, so that it could be counted twice")
        key = f"{self._session.get(file, '')}:{row['id']}"
        self._last[key] = self._call(row, tokens, key, where)
        return 1

    def calls(self) -> Iterator[Told]:
        """Each message once."""
        yield from self._last.values()

    def _call(self, row: Row, tokens: Row, key: str, where: str) -> ImportedCall:
        before, answer, cached, thoughts, tool = (
            count_of(tokens, name) for name in ("input", "output", "cached", "thoughts", "tool")
        )
        beside = cached > before or (
            cached > 0 and count_of(tokens, "total") == before + answer + thoughts + tool + cached
        )
        return ImportedCall(
            where=where,
            id=f"gemini:{key}",
            provider=self._given.provider or "google",
            model=str(row.get("model") or self._given.model or ""),
            at=instant_of(row.get("timestamp"), tz="UTC"),
            endpoint="models.generate_content",
            quantities=without_zero({
                "input": before + tool - (0 if beside else cached),
                "cache_read": cached,
                "output": answer + thoughts,
            }),
            reasoning=thoughts,
            usage=dict(tokens),
            grows=True,
        )  # fmt: skip


class Aider:
    """aider's analytics log. Lines have no id: equal lines are told apart by how many there are of them."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._equal: Counter[tuple[str, str]] = Counter()
        self._found: list[ImportedCall] = []

    def read(self, row: Row, where: str) -> int:
        """Take a line; how many calls it tells."""
        if row.get("event") != "message_send":
            return 0
        told = object_in(row, "properties")
        if not told:
            return 0
        content = json.dumps(row, sort_keys=True)
        file = where.rpartition(":")[0]
        self._equal[file, content] += 1
        name = hashlib.sha256(f"{content} {self._equal[file, content]}".encode()).hexdigest()[:32]
        model = str(told.get("main_model") or self._given.model or "")
        provider = self._given.provider or provider_of(model)
        if not provider:
            raise ConfigurationError("whose model it is cannot be told: give --provider")
        self._found.append(
            ImportedCall(
                where=where,
                id=f"aider:{name}",
                provider=provider,
                model=model,
                at=instant_of(row.get("time"), tz="UTC"),
                endpoint=endpoint_of(provider),
                quantities=without_zero(
                    {"input": count_of(told, "prompt_tokens"), "output": count_of(told, "completion_tokens")}
                ),
                flags=frozenset({"cache_uncertain", "id_assumed"}),
                cost_in_source=None if told.get("cost") is None else decimal_of(told["cost"], "cost"),
            )
        )
        return 1

    def calls(self) -> Iterator[Told]:
        """Each line."""
        yield from self._found


def opencode(row: Row, where: str, given: Given) -> ImportedCall | None:
    """A message of opencode: its input is without the cache, its output without reasoning."""
    if row.get("role") != "assistant":
        return None
    tokens = object_in(row, "tokens")
    cache = object_in(tokens, "cache")
    reasoning = count_of(tokens, "reasoning")
    read, written = count_of(cache, "read"), count_of(cache, "write")
    quantities = without_zero(
        {
            "input": count_of(tokens, "input"),
            "cache_read": read,
            "cache_write_5m": written,
            "output": count_of(tokens, "output") + reasoning,
        }
    )
    if not quantities:
        return None
    model = str(row.get("modelID") or given.model or "")
    provider = given.provider or str(row.get("providerID") or provider_of(model) or "")
    return ImportedCall(
        where=where,
        id=f"opencode:{row.get('id')}",
        provider=provider,
        model=model,
        at=instant_of(mapping_of(row.get("time")).get("created"), tz="UTC"),
        endpoint=endpoint_of(provider),
        quantities=quantities,
        reasoning=reasoning,
        flags=frozenset({"cache_lifetime_assumed"} if written else ()),
        cost_in_source=None if row.get("cost") is None else decimal_of(row["cost"], "cost"),
        usage=dict(tokens),
        tags=_tags(session=row.get("sessionID")),
        grows=True,
    )


def _tags(**given: object) -> dict[str, str]:
    return {name: str(value) for name, value in given.items() if value}
