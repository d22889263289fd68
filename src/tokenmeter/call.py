"""A call on its way: what accounting needs to know of it, and how it ended. Never its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tokenmeter.attribution import NOBODY, ApiKey, Attribution, Scope
from tokenmeter.dimensions import Status
from tokenmeter.usage import Observation
from tokenmeter.values import dataclass

_NO_TOOLS: Mapping[str, str] = MappingProxyType({})
#: A request for nothing that is sold by the piece.
NO_PIECES: Mapping[str, int] = MappingProxyType({})


class ActiveSpan(NamedTuple):
    """The OpenTelemetry span that a call is made in.

    Attributes:
        span: The span, to be told what its calls cost.
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
    """

    span: Any
    trace_id: str
    span_id: str


class Picture(NamedTuple):
    """A picture in a prompt, as far as its request says what it is.

    Attributes:
        width: In pixels; 0 where it is not known.
        height: See `width`.
        detail: How closely the model is to look, in the caller's word; None where none is named.
    """

    width: int = 0
    height: int = 0
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """The few facts of a request that accounting needs. The prompt itself is in nothing that is kept or shown.

    Attributes:
        model: Model the caller named; for Azure the deployment.
        stands_for: Model that the user's settings say it is; None where they say nothing of that name.
        service_tier: Tier asked for (the one served is the response's).
        speed: Anthropic's speed asked for.
        processing: ``"batch"`` when the context says so.
        region: Region or data zone, where the client's URL decides it.
        input_bytes: UTF-8 bytes of everything that is sent as prompt (messages, system, tools): an upper bound of its
            tokens.
        long_texts: References to the prompt's longer texts, for counting tokens before the call leaves; never kept.
        max_output_tokens: The caller's own cap, per choice; None when not named.
        unclear_limit: Whether it says of its answer's length what is no count, or says it twice: no cap is put beside
            that, or in its place.
        choices: How many answers were asked for (``n``).
        streamed: Whether an event stream was asked for.
        tool_models: Models that the request configures for hosted tools, by tool type
            (``{"image_generation": "gpt-image-1.5"}``).
        tools: Hosted tools that the request configures, as far as their bill depends on it (kind, model, container):
            hosts need not repeat them in their answers.
        terms: What else in the request decides its price, and may be left out of the answer, by the answer's name for
            it: ``search_context_size``, ``inference_geo``, ``cache_ttl``; of an extended video ``added_seconds``.
        unbounded: Why no upper bound of the output exists (``"server_tools"``, ``"advisor"``, ...); None when it does.
        cache_writes: Which of the prompt's tokens may be billed as written to a cache: ``"none"`` where the request
            marks none and nothing else has them written, ``"usual"`` where none is to be kept longer than is usual.
        image_count: Images in the prompt (their tokens are not bounded by bytes).
        pictures: Those of them that say anything of themselves.
        bare: Whether it has nothing (tools, a schema) for which the provider puts a prompt of its own before it.
        background: Whether the answer is made without the connection and read later; of a call that reads one: whether
            this process asked for it so.
        pieces: What may be sold by the piece and is counted in the request, by meter: ``{"seconds_video": 16}``,
            ``{"characters": 300}`` to be spoken, ``{"images": 2}``.
        cost_unit: What the user's settings say of the ``cost`` in this host's usage: ``"usd"``, ``"cents"``, US dollars
            per unit as decimal text, or ``"ignore"``; None: what is known of the host.
        billed_elsewhere: Flag of an entry whose request asks that the account of somebody else is billed, who then pays
            all of it; None where it is billed as usual.
        lines_billed_elsewhere: The same of a batch, by its lines' names: those that are billed as usual are not in it.
        sizes: What earlier calls learnt of what this one may name, by id; see `tokenmeter.usage.Observation.size`.
    """

    model: str | None = None
    stands_for: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    processing: str | None = None
    region: str | None = None
    input_bytes: int = 0
    long_texts: Sequence[str] = field(default=(), repr=False, compare=False)
    max_output_tokens: int | None = None
    unclear_limit: bool = False
    choices: int = 1
    streamed: bool = False
    tool_models: Mapping[str, str] = field(default_factory=lambda: _NO_TOOLS)
    tools: Sequence[Mapping[str, Any]] = ()
    terms: Mapping[str, str] = field(default_factory=lambda: _NO_TOOLS)
    unbounded: str | None = None
    cache_writes: Literal["any", "usual", "none"] = "any"
    image_count: int = 0
    pictures: Sequence[Picture] = ()
    bare: bool = False
    background: bool = False
    pieces: Mapping[str, int] = field(default_factory=lambda: NO_PIECES)
    cost_unit: str | None = None
    billed_elsewhere: str | None = None
    lines_billed_elsewhere: Mapping[str, str] = field(default_factory=lambda: _NO_TOOLS, repr=False, compare=False)
    sizes: Mapping[str, str] = field(default_factory=lambda: _NO_TOOLS, repr=False, compare=False)

    @property
    def meant_model(self) -> str | None:
        """The model by whose name it is told what is counted, by the character or by the token."""
        return self.stands_for or self.model

    @property
    def billed_region(self) -> str | None:
        """Where the work is billed: Bedrock's profile is named with the model, which its answers leave out."""
        model = self.model or ""
        profile = model.rsplit("/", 1)[-1]
        if profile.startswith("global."):
            return "global"
        if self.region is None and (profile.startswith("us-gov.") or model.startswith("arn:aws-us-gov:")):
            return "us-gov"  # in which of its regions costs the same
        return self.region


class PlainRequest(NamedTuple):
    """What accounting asks of a request of plain texts before it leaves: `RequestFacts`, as far as it has any.

    Attributes:
        model: See `RequestFacts`, as for the others.
        input_bytes: See there.
        long_texts: See there.
        max_output_tokens: See there.
        choices: See there.
        streamed: See there.
        service_tier: See there.
        image_count: See there: none.
        pictures: See there: none.
        bare: See there.
        unclear_limit: See there.
        unbounded: See there: its output has an upper bound.
        cache_writes: See there.
    """

    model: str
    input_bytes: int
    long_texts: Sequence[str]
    max_output_tokens: int | None
    choices: int
    streamed: bool
    service_tier: str | None
    image_count: int = 0
    unbounded: str | None = None
    cache_writes: Literal["any", "usual", "none"] = "any"
    pictures: Sequence[Picture] = ()
    bare: bool = False
    unclear_limit: bool = False

    def facts(self, *, region: str | None, cost_unit: str | None) -> RequestFacts:
        """The same as `RequestFacts`, for a client of this region and cost unit."""
        return RequestFacts(
            model=self.model,
            service_tier=self.service_tier,
            region=region,
            input_bytes=self.input_bytes,
            long_texts=self.long_texts,
            max_output_tokens=self.max_output_tokens,
            unclear_limit=self.unclear_limit,
            choices=self.choices,
            streamed=self.streamed,
            cache_writes=self.cache_writes,
            bare=self.bare,
            cost_unit=cost_unit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that is about to leave, as capture sees it.

    Attributes:
        provider: Provider id as in genai-prices.
        endpoint: SDK method path.
        operation: OpenTelemetry operation name.
        facts: What accounting needs of the request; never the prompt.
        attribution: On whose account, scopes and client defaults merged.
        scopes: Open `attribute` blocks to count into, outermost first.
        api_key: Which key is used.
        span: The span it is made in, where traces are on.
        goes_on: Whether it is part of a session that counts as a request already.
        as_written: Whether nothing can be put into its request any more, an output cap least of all.
    """

    provider: str
    endpoint: str
    operation: str
    facts: RequestFacts
    attribution: Attribution = NOBODY
    scopes: tuple[Scope, ...] = ()
    api_key: ApiKey | None = None
    span: ActiveSpan | None = None
    goes_on: bool = False
    as_written: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call, or one billed response of it, ended.

    Attributes:
        status: ``ok``, ``error``, ``aborted`` or ``timeout``.
        observation: What the provider said; None when no billed answer came.
        response_id: Provider's id, if the observation has none.
        request_id: Provider's id of the HTTP request.
        attempts: HTTP requests it took.
        first_token_us: Microseconds from the call's start to its first event.
        error_type: Class name of what was raised.
        last: Whether the hold ends here. A call billed twice (middleware, fallbacks) settles twice.
        entry_id: Identity of the entry, for who may have to ask whether it was written; None = a new one.
    """

    status: Status = "ok"
    observation: Observation | None = None
    response_id: str | None = None
    request_id: str | None = None
    attempts: int = 1
    first_token_us: int | None = None
    error_type: str | None = None
    last: bool = True
    entry_id: str | None = None
