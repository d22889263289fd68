"""What coding agents write down: Claude Code, Codex, Gemini CLI, opencode, aider.

A call is spread over lines, and lines are copied between files, so each reader takes all files of its kind and gives
each call once. Transcripts are the agents' own account; the provider's console decides what is billed.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta
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
    object_in,
    provider_of,
    sides_of,
    texts_of,
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


class _ToldCall(NamedTuple):
    """A writing of a call, and what makes it the one that counts: the highest, whatever order lines stand in."""

    rank: tuple[Any, ...]
    call: ImportedCall


class ClaudeCode:
    """Transcripts of Claude Code.

    One message is a line per content block, and is copied into resumed sessions and subagents' files: the line with the
    highest output counts, of the main conversation before a sidechain's, and the earliest of equal ones.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self._best: dict[str, _ToldCall] = {}

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
        call = self._call(row, message, usage, where)
        rank = (not row.get("isSidechain"), count_of(usage, "output_tokens"), -call.at.timestamp())
        _keep_higher(self._best, str(name), _ToldCall(rank, call))
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
        prompt, answer = sides_of(usage, "input_tokens", "output_tokens", model=model)
        tier = usage.get("service_tier")
        folder = str(row.get("cwd") or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
        geo = usage.get("inference_geo")
        return ImportedCall(
            where=where,
            id=str(message["id"]),
            provider=self._given.provider or provider_of(model) or "anthropic",
            model=model,
            at=made_at(self._given, row.get("timestamp")),
            endpoint=self._given.endpoint or "messages",
            quantities=without_zero({
                "input": prompt,
                "cache_read": count_of(usage, "cache_read_input_tokens"),
                "cache_write_5m": short + rest,
                "cache_write_1h": hour,
                "output": answer,
                "web_searches": count_of(tools, "web_search_requests"),
            }),
            service_tier=None if tier in {None, "standard"} else str(tier),
            processing="batch" if tier == "batch" else None,
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
    number: int
    total: tuple[int, ...]
    last: tuple[int, ...] | None
    where: str


class _CodexMeta(NamedTuple):
    """What a session says of itself; a fork's file has its parent's beside its own."""

    name: str
    parent: str | None
    started: datetime
    folder: str


@dataclass(slots=True)
class _CodexFile:
    """A session of Codex as its file tells it. Lines go by their instants, and as they stand only within one."""

    metas: list[_CodexMeta] = field(default_factory=list["_CodexMeta"])
    turns: list[tuple[datetime, int, str]] = field(default_factory=list[tuple[datetime, int, str]])
    counts: list[_CodexCount] = field(default_factory=list["_CodexCount"])

    def own(self) -> _CodexMeta | None:
        """Whose file it is: the session that is no other's parent."""
        parents = {meta.parent for meta in self.metas}
        return next((meta for meta in self.metas if meta.name not in parents), None)

    def model_of(self, count: _CodexCount) -> str | None:
        """The model of the turn that a count is in."""
        at = bisect(self.turns, (count.at, count.number))
        return self.turns[at - 1][2] if at else None


class Codex:
    """Rollouts of Codex: running totals, of which each call is the difference.

    A total that did not move is a repeat; forks and subagents begin with their parent's totals again.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self._files: dict[str, _CodexFile] = {}

    def read(self, row: Row, where: str) -> int:
        """Take a line; how many calls it tells."""
        file = self._files.setdefault(where.rpartition(":")[0], _CodexFile())
        number = len(file.turns) + len(file.counts)
        payload = mapping_of(row.get("payload"))
        kind = row.get("type")
        if kind == "session_meta":
            file.metas.append(
                _CodexMeta(
                    str(payload.get("id") or ""),
                    _parent(payload),
                    made_at(self._given, payload.get("timestamp"), row.get("timestamp")),
                    str(payload.get("cwd") or "").rstrip("/").rpartition("/")[2],
                )
            )
        elif kind == "turn_context" and payload.get("model"):
            file.turns.append((made_at(self._given, row.get("timestamp")), number, str(payload["model"])))
        elif kind == "event_msg" and payload.get("type") == "token_count" and object_in(payload, "info"):
            info = mapping_of(payload["info"])
            last = object_in(info, "last_token_usage")
            file.counts.append(
                _CodexCount(
                    made_at(self._given, row.get("timestamp")),
                    number,
                    _total(object_in(info, "total_token_usage")),
                    _total(last) if last else None,
                    where,
                )
            )
            return 1
        return 0

    def calls(self) -> Iterator[Told]:
        """Each call once, over sessions, their forks, and archived copies."""
        files = [(file.own(), file) for file in self._files.values()]
        totals = {meta.name: {count.total for count in file.counts} for meta, file in files if meta}
        for meta, file in files:
            yield from self._of_session(meta, file, totals.get(meta.parent) if meta and meta.parent else None)

    def _of_session(
        self, meta: _CodexMeta | None, file: _CodexFile, inherited: set[tuple[int, ...]] | None
    ) -> Iterator[Told]:
        before: tuple[int, ...] = (0,) * len(_TOTALS)
        run, own = 0, meta is None or meta.parent is None
        file.turns.sort()
        # Lines of parallel writers may stand out of order: a total that falls is a new run only where time went on.
        for count in sorted(file.counts, key=lambda one: (one.at, one.total)):
            now, last = count.total, count.last
            if last and not any(now):  # only the call itself is told
                now = tuple(told + known for told, known in zip(last, before, strict=True))
            if not own:  # what a fork repeats of its parent
                at_once = meta is not None and count.at - meta.started <= _SECOND
                if now in inherited if inherited is not None else at_once:
                    before = now
                    continue
                own = True
            if now == before:
                continue
            moved = tuple(told - known for told, known in zip(now, before, strict=True))
            fell = min(moved) < 0
            run += fell
            used = (last or now) if fell else moved
            before = now
            try:
                yield self._call(meta, count, file.model_of(count), used, identity=f"{run}:{now[0]}+{now[3]}")
            except ConfigurationError as error:
                yield count.where, str(error)

    def _call(
        self, meta: _CodexMeta | None, count: _CodexCount, model: str | None, used: Sequence[int], *, identity: str
    ) -> ImportedCall:
        whole, cached, written, output, reasoning = used
        if meta is None or not meta.name:
            raise ConfigurationError("the session has no id, so that it could be counted twice")
        name = model or self._given.model or _CODEX_MODEL
        output, reasoning, doubts = answer_of(output, reasoning)
        return ImportedCall(
            where=count.where,
            id=f"codex:{meta.name}:{identity}",
            provider=self._given.provider or "openai",
            model=name,
            at=count.at,
            endpoint=self._given.endpoint or "responses",
            quantities=without_zero(
                {
                    "input": whole - cached - written,
                    "cache_read": cached,
                    "cache_write_30m": written,
                    "output": output,
                }
            ),
            reasoning=reasoning,
            flags=doubts.union(() if model or self._given.model else {"model_assumed"}),
            who={"project": meta.folder} if meta.folder else {},
            tags=_tags(session=meta.name),
        )


def _keep_higher(seen: dict[Any, _ToldCall], key: object, one: _ToldCall) -> None:
    """The writing that counts; of equal ones the first that is read."""
    if key not in seen or one.rank > seen[key].rank:
        seen[key] = one


def _parent(payload: Row) -> str | None:
    spawned = mapping_of(mapping_of(mapping_of(payload.get("source")).get("subagent")).get("thread_spawn"))
    parent = payload.get("forked_from_id") or spawned.get("parent_thread_id")
    return str(parent) if parent else None


def _total(usage: Row) -> tuple[int, ...]:
    return tuple(count_of(usage, name) for name in _TOTALS)


class Gemini:
    """Chats of the Gemini CLI. A message is written again under its id as it grows: the latest and largest counts."""

    def __init__(self, given: Given) -> None:
        self._given = given
        #: By file, session and id; a line before that of its session has none yet.
        self._best: dict[tuple[str, str | None, str], _ToldCall] = {}
        self._sessions: dict[str, list[str]] = {}

    def read(self, row: Row, where: str) -> int:
        """Take a line or a whole chat; how many calls it tells."""
        file = where.rpartition(":")[0]
        if row.get("sessionId"):
            self._sessions.setdefault(file, []).append(str(row["sessionId"]))
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
        call = self._call(row, tokens, where)
        session = next(reversed(self._sessions.get(file, [])), None)
        rank = (call.at, sum(call.quantities.values()))
        _keep_higher(self._best, (file, session, str(row["id"])), _ToldCall(rank, call))
        return 1

    def calls(self) -> Iterator[Told]:
        """Each message once."""
        best = dict[str, _ToldCall]()
        for (file, session, name), seen in self._best.items():
            said = session or next(iter(self._sessions.get(file, [])), "")
            _keep_higher(best, f"gemini:{said}:{name}", seen)
        for key, seen in best.items():
            yield replace(seen.call, id=key)

    def _call(self, row: Row, tokens: Row, where: str) -> ImportedCall:
        model = str(row.get("model") or self._given.model or "")
        before, answer = sides_of(tokens, "input", "output", model=model)
        cached, thoughts, tool, total = (count_of(tokens, name) for name in ("cached", "thoughts", "tool", "total"))
        parts = before + answer + thoughts + tool
        beside = cached > before or (cached > 0 and total == parts + cached)
        return ImportedCall(
            where=where,
            id="",  # as its session is called, which a later line may say
            provider=self._given.provider or "google",
            model=model,
            at=made_at(self._given, row.get("timestamp")),
            endpoint=self._given.endpoint or "models.generate_content",
            quantities=without_zero({
                "input": before + tool - (0 if beside else cached),
                "cache_read": cached,
                "output": answer + thoughts,
            }),
            reasoning=thoughts,
            flags=frozenset({"total_mismatch"} if total and total not in {parts, parts + cached} else ()),
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
        prompt, answer = sides_of(told, "prompt_tokens", "completion_tokens", model=model)
        call = ImportedCall(
            where=where,
            id=f"aider:{name}",
            model=model,
            at=made_at(self._given, row.get("time")),
            quantities=without_zero({"input": prompt, "output": answer}),
            flags=frozenset({"cache_uncertain", "id_assumed"}),
            cost_in_source=None if told.get("cost") is None else decimal_of(told["cost"], "cost"),
        )
        self._found.append(complete(call, self._given))
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
    prompt, answer = sides_of(tokens, "input", "output", model=row.get("modelID"))
    read, written = count_of(cache, "read"), count_of(cache, "write")
    quantities = without_zero(
        {
            "input": prompt,
            "cache_read": read,
            "cache_write_5m": written,
            "output": answer + reasoning,
        }
    )
    if not quantities:
        return None
    if not row.get("id"):
        raise ConfigurationError("the message has no id, so that it could be counted twice")
    return ImportedCall(
        where=where,
        id=f"opencode:{row['id']}",
        provider=str(row.get("providerID") or ""),
        model=str(row.get("modelID") or ""),
        at=made_at(given, mapping_of(row.get("time")).get("created")),
        quantities=quantities,
        reasoning=reasoning,
        flags=frozenset({"cache_lifetime_assumed"} if written else ()),
        cost_in_source=None if row.get("cost") is None else decimal_of(row["cost"], "cost"),
        usage=dict(tokens),
        tags=_tags(session=row.get("sessionID")),
        grows=True,
    )


def _tags(**given: object) -> dict[str, str]:
    return texts_of(given)
