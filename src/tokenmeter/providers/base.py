"""What a provider's room supplies: pure readers from decoded JSON to an `Observation`. No SDK is imported.

A live call and `tokenmeter.price()` go through the same readers. `Routes` is the rule from HTTP method and URL path to
the SDK method that makes such a request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, cast
from urllib.parse import unquote

from tokenmeter.call import PlainRequest, RequestFacts
from tokenmeter.providers.context import Context, billed_to, bounded
from tokenmeter.providers.wire import JSON, LONGEST_NAME, is_object, text
from tokenmeter.usage import Observation
from tokenmeter.values import dataclass

#: How a call to an endpoint is billed: by its own answer (``billed``; ``unknown`` where no reader is known for it), by
#: what it started and is read later (``starts``), in a body that repeats that bill until it is final (``polled``), not
#: at all (``free``).
Kind = Literal["billed", "unknown", "starts", "polled", "free"]
#: Whether an answer holds ``one`` bill, or many: the ``lines`` of a results file, or the ``items`` of a page or of a
#: stream of events.
Form = Literal["one", "lines", "items"]
#: Reads a whole body.
Read = Callable[[Any, Context], Observation]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of a provider's API, named by its SDK method path.

    Attributes:
        path: SDK method path (``chat.completions``, ``responses``, ``messages.batches``, ...); for a URL that no SDK
            method has, the URL's own path, so that nothing goes unseen.
        operation: OpenTelemetry ``gen_ai.operation.name``.
        kind: How a call to it is billed. ``polled`` bodies are recorded once, by response id; of what ``starts`` work
            it is remembered who made it; ``free`` calls make no entry; of an ``unknown`` answer a usage object found
            in its body is still recorded, flagged.
        form: How many bills an answer holds.
        subject: The id in the URL: of the batch, file or session that is asked about; None when it names none.
        kept: Whether its provider keeps its answers, so that a ``polled`` endpoint says them again by their ids.
    """

    path: str
    operation: str
    kind: Kind = "billed"
    form: Form = "one"
    subject: str | None = None
    kept: bool = False

    @property
    def billed(self) -> bool:
        """Whether a call makes a new bill, so that a budget is to be asked first."""
        return self.kind in {"billed", "unknown"}


class Plain(NamedTuple):
    """What a plain answer used: one model, one prompt, every count said and none in doubt.

    Attributes:
        model: Model named by the answer; None when it names none.
        response_id: Provider's id.
        service_tier: Tier that served it, as the answer says.
        quantities: As in `tokenmeter.usage.Usage`.
        prompt_tokens: Size of the prompt, cache included.
        reasoning_tokens: Informational part of the output.
        usage: The usage object off the wire.
    """

    model: str | None
    response_id: str | None
    service_tier: str | None
    quantities: dict[str, int]
    prompt_tokens: int
    reasoning_tokens: int
    usage: Any


class PlainReader(NamedTuple):
    """How the plain answers of one endpoint are read.

    Attributes:
        key: Key of the body that says what it is.
        says: What it says of a plain answer; None: that one lacks it.
        read: Reads one; None for one that is not plain after all.
    """

    key: str
    says: str | None
    read: Callable[[JSON], Plain | None]

    def __call__(self, body: Any) -> Plain | None:
        """Read any decoded body; None for one that is not plain."""
        if not is_object(body) or body.get(self.key) != self.says:
            return None
        seen = self.read(body)
        if seen is None:
            return None
        model, response_id, tier = seen.model, seen.response_id, seen.service_tier
        if type(model) is not str or not 0 < len(model) <= LONGEST_NAME:
            return None
        if response_id is not None and (type(response_id) is not str or not 0 < len(response_id) <= LONGEST_NAME):
            return None
        if tier is not None and (type(tier) is not str or not 0 < len(tier) <= LONGEST_NAME):
            return None
        return seen


class StreamReader(Protocol):
    """Reads the events of one stream. Usage events replace, they never add."""

    @property
    def terminal(self) -> bool:
        """Whether the event that ends the answer has been seen (its usage, if any, is final)."""
        ...

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take the next decoded event. Must be cheap and must not keep it alive."""
        ...

    def body(self) -> Any:
        """The answer as it would have come unstreamed, as far as its bill goes; None where that cannot be said.

        To be asked at the end only. Says no more than `observation` does.
        """
        ...

    def observation(self) -> Observation:
        """What is known now. Before `terminal` (or without usage) the missing part is estimated, flag ``estimated``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketEvents:
    """Names of the events, by their ``type``, that matter on a provider's WebSocket connections.

    Attributes:
        requests: Sent to ask for an answer.
        limits: Fields of an answer that is asked for, and of a session, that limit the answer's tokens.
        starts: Sent to start a session; they name its model.
        sounds: Sent with sound, which may be billed, or answered, with nobody asking.
        begun: Say that an answer has begun.
        answers: End an answer that was asked for, with its usage on them.
        asides: End something that nobody asked for on this connection, with its usage on them.
        delegated: Of those, the ones that end what somebody may have asked for after all.
        totals: Carry a session's running total.
        last_totals: Of those, the ones after which no other comes.
        beginnings: Begin a session; they carry its settings.
        settings: Carry changed settings of a session.
        errors: Say that something that was asked for will not come.
        refuses: Whether an error that names no event is about one that asked for an answer, and can be about no other.
        unasked: From a session, what says what it bills with nobody asking: ``answers`` that it makes by itself, or a
            running total; else ``asides``; None where it bills only what is asked for.
        sound_sent: Bytes of sound in an event that is sent, where the session says nothing of what it uses; else 0.
        sound_used: The event that would say what a session used, from the session and the bytes it was sent.
    """

    requests: frozenset[str]
    limits: frozenset[str]
    starts: frozenset[str]
    sounds: frozenset[str]
    begun: frozenset[str]
    answers: frozenset[str]
    asides: frozenset[str]
    delegated: frozenset[str]
    totals: frozenset[str]
    last_totals: frozenset[str]
    beginnings: frozenset[str]
    settings: frozenset[str]
    errors: frozenset[str]
    refuses: Callable[[JSON], bool]
    unasked: Callable[[JSON], Literal["answers", "asides"] | None]
    sound_sent: Callable[[JSON], int]
    sound_used: Callable[[JSON, int], JSON]


class Dialect(ABC):
    """The wire format of one provider family.

    Attributes:
        name: The room's name.
        endpoints: Beginnings of the endpoints that only this format has, whoever serves it.
        bodies: What only its bodies call themselves (``type``, ``object``), whichever endpoint they came from.
        usages: Fields of a usage object that only it reads, whoever served the call.
        beginnings: What the first event of a stream calls itself (``type``, ``object``), and no whole body.
        pages: Fields of a page of bodies, beside its ``data``.
        models: Beginnings of the names of its own provider's models.
        singular_fields: Fields of a request that change what its answer costs, or when: with one of them it is like no
            other call.
        plain: Endpoint -> quick reader of its plain answers, which says the same as `read`.
        plain_requests: Endpoint -> quick reader of requests of plain texts, which says the same as `request_facts`;
            None of any other request.
        socket_events: What is said on its WebSocket connections; None when it has none.
    """

    name: str
    endpoints: tuple[str, ...] = ()
    bodies: frozenset[str] = frozenset()
    usages: frozenset[str] = frozenset()
    beginnings: frozenset[str] = frozenset()
    pages: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    singular_fields: frozenset[str] = frozenset()
    plain: Mapping[str, PlainReader] = MappingProxyType({})
    plain_requests: Mapping[str, Callable[[JSON], PlainRequest | None]] = MappingProxyType({})
    socket_events: SocketEvents | None = None

    @abstractmethod
    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path (with or without ``/v1``, base path or query)."""

    def endpoints_at(self, method: str, path: str) -> Mapping[str, Endpoint]:
        """By provider: what it alone bills at a URL path at which others have something else, or something free."""
        del method, path
        return MappingProxyType({})

    def named(self, path: str) -> Endpoint:
        """The endpoint of an SDK method path, for a call that is described and not seen."""
        return Endpoint(path, "other", "unknown")

    def billed(self) -> Iterable[str]:
        """SDK method paths that are billed when they answer."""
        return ()

    @abstractmethod
    def usual_endpoint(self, body: Mapping[str, Any]) -> str:
        """The SDK method path of what a request `body` is most likely for, where nobody says."""

    def as_sent(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request body that the SDK makes of the `arguments` of a call, as far as accounting reads it."""
        return arguments

    @abstractmethod
    def request_facts(self, endpoint: Endpoint, body: Mapping[str, Any] | None) -> RequestFacts:
        """The facts of a request body; `body` is the dict the SDK is about to serialise (or None)."""

    @abstractmethod
    def read_body(self, body: Any, context: Context) -> Observation:
        """Usage of a whole decoded body in `context`; see `read`."""

    @abstractmethod
    def stream(self, *, provider: str, endpoint: str, request: RequestFacts) -> StreamReader:
        """A fresh reader for one stream."""

    def read(self, body: Any, *, provider: str, endpoint: str, request: RequestFacts) -> Observation:
        """Usage of a whole decoded body. A body without usage gives an Observation without consumptions.

        Args:
            body: The decoded JSON, a bare usage object, or text for endpoints that answer in text.
            provider: Provider id, since compatible hosts differ in detail.
            endpoint: `Endpoint.path`.
            request: Facts of the request; defaults where the caller only has the body.
        """
        return self.read_bounded(body, Context(provider, endpoint, request))

    def read_bounded(self, body: Any, context: Context) -> Observation:
        """As `read_body`, in so few groups and such short names that a hostile host cannot flood the ledger."""
        seen = bounded(context.with_stated_bill(self.read_body(body, context)))
        return billed_to(seen, context.request.billed_elsewhere)

    def begins_stream(self, event: JSON) -> bool:
        """Whether an event may be the first of its stream, and is no whole body."""
        return not self.beginnings.isdisjoint(_names(event))

    def is_whole(self, body: JSON) -> bool:
        """Whether `body` says by what it is called that it is an answer, and no event of one."""
        return not (self.bodies.isdisjoint(_names(body)) or self.begins_stream(body))

    def ends_stream(self, event: JSON) -> bool:
        """Whether an event holds all that its stream says: there is one to a stream."""
        del event
        return False

    def split_streams(self, events: Sequence[Any]) -> list[list[JSON]]:
        """The events of each stream whose events are in a list one after the other; none where the list is no such."""
        found: list[list[JSON]] = []
        going, over, known = False, False, None
        for event in filter(is_object, events):
            begins, ends, name = self.begins_stream(event), self.ends_stream(event), text(event, "id") or None
            same = name == known if name and known else going
            if (begins and not same) or (ends and over):
                found.append([])
                known, over = None, False
            elif not found or self.is_whole(event):
                return []  # each is an answer by itself
            found[-1].append(event)
            going, over, known = begins, over or ends, name or known
        return found

    def items(self, body: Any) -> Sequence[Any]:
        """The bills in a page (`Form` ``items``), each in a shape that `read_body` knows."""
        found: Any = body.get("data") if is_object(body) else None
        return cast("Any", found) if isinstance(found, list) else ()

    def parts(self, body: Any) -> Sequence[Any]:
        """What is in a list of bodies or events, or in a page of them; nothing for a body by itself."""
        page = is_object(body) and not self.pages.isdisjoint(body)
        found: Any = body.get("data") if page else body
        return cast("Any", found) if isinstance(found, list) else ()

    # -- what a request may be changed by

    @abstractmethod
    def output_cap(self, endpoint: Endpoint, body: Mapping[str, Any], tokens: int, *, provider: str) -> tuple[str, Any]:
        """The top-level field of a request `body`, with its value, that limits the answer to `tokens`."""

    def usage_request(self, endpoint: Endpoint, body: Mapping[str, Any]) -> tuple[str, Any] | None:
        """The field to add to a streaming request so that the stream states its usage, with its value.

        None where the stream does so by itself, or where the caller's own `body` decides.
        """
        del endpoint, body
        return None

    def refuses_usage_request(self, message: str) -> bool:
        """Whether a host that refused a request with `message` did so because of what `usage_request` added."""
        del message
        return False

    def usage_hider(self) -> Callable[[Any], bool]:
        """A function for the events of one stream that was sent with `usage_request`, called with each in order.

        It takes off an event what is there only because usage was asked for, and says whether nothing else was in it.
        """
        return lambda _: False


def _names(event: JSON) -> set[str | None]:
    """What an event or a body calls itself."""
    return {text(event, "type"), text(event, "object")}


@dataclass(frozen=True, slots=True)
class _Route:
    methods: frozenset[str]
    segments: tuple[str, ...]  # "*" stands for any one
    endpoint: Endpoint


class Routes:
    """The endpoints of one API.

    Rows are ``METHOD /path sdk.method.path operation``, without ``.create`` at the method's end, and with an
    answer's form behind where it holds many bills (``lines``, ``items``).

    Args:
        roots: First segments of every resource. Those without a row are files, stores and settings, free to call.
        paid_roots: Of those, the ones whose unknown POSTs may well cost something: they count as ``unknown``.
        tables: The rows by kind, earlier ones first.
    """

    def __init__(self, roots: frozenset[str], paid_roots: frozenset[str], tables: dict[Kind, str]) -> None:
        self._roots = roots
        self._paid_roots = paid_roots
        self._routes = tuple(route for kind, table in tables.items() for route in _rows(kind, table))

    def find(self, method: str, path: str) -> Endpoint:
        """The endpoint of a request to the bare `path`."""
        method = method.upper()
        segments = [segment for segment in path.split("/") if segment]
        start = next((index for index, segment in enumerate(segments) if segment in self._roots), None)
        for index in range(start or 0, len(segments)):
            for route in self._routes:
                # Behind the first resource's name only a bill counts: a base path may hold such a name as well.
                at_start = start is None or index == start or route.endpoint.kind != "free"
                if at_start and method in route.methods and _fits(route.segments, segments[index:]):
                    return _about(route, segments[index:])
        if start is None:
            # Nothing we know: a POST may cost something, so it is looked at; nothing else is.
            return Endpoint("/" + "/".join(segments), "other", "unknown" if method == "POST" else "free")
        tail = segments[start:]
        paid = method == "POST" and tail[0] in self._paid_roots
        return Endpoint("/" + "/".join(tail), "other", "unknown" if paid else "free")

    def billed(self) -> Iterable[str]:
        """SDK method paths that are billed when they answer."""
        return (route.endpoint.path for route in self._routes if route.endpoint.kind == "billed")

    def named(self, path: str) -> Endpoint | None:
        """The endpoint with this SDK method path; None when the API has none."""
        name = path.removesuffix(".create")
        plain = name.removeprefix("beta.")
        found = next((route.endpoint for route in self._routes if route.endpoint.path in {name, plain}), None)
        return None if found is None else replace(found, path=name)


def _rows(kind: Kind, table: str) -> Iterable[_Route]:
    for row in table.strip().splitlines():
        method, path, name, operation, *marks = row.split()
        form: Form = "lines" if "lines" in marks else "items" if "items" in marks else "one"
        segments = tuple(path.strip("/").split("/"))
        yield _Route(frozenset(method.split("|")), segments, Endpoint(name, operation, kind, form))


def _fits(pattern: tuple[str, ...], segments: list[str]) -> bool:
    return len(pattern) == len(segments) and all(
        want in {"*", have} for want, have in zip(pattern, segments, strict=True)
    )


def _about(route: _Route, segments: list[str]) -> Endpoint:
    """The route's endpoint with the id that stands in the URL, in the same spelling as bodies have it."""
    if "*" not in route.segments:
        return route.endpoint
    return replace(route.endpoint, subject=unquote(segments[route.segments.index("*")]))


def bare_path(path: str) -> tuple[str, str]:
    """The path below the host, without a trailing slash, and the query."""
    bare, _, query = path.partition("?")
    _, scheme, rest = bare.partition("://")
    if scheme:
        bare = rest.partition("/")[2]
    return bare.rstrip("/"), query
