"""Attribution where contexts do not reach: threads, pools, other processes and services; and what a request says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import quote, unquote

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import NOBODY, Attribution, current_attribution, current_scopes
from tokenmeter.dimensions import WHO
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.running import runner_of, scopes_set_to

P = ParamSpec("P")
R = TypeVar("R")

#: The header of https://www.w3.org/TR/baggage/.
BAGGAGE = "baggage"
_OURS = "tokenmeter."
_TAG = "tag."
#: What the recommendation has every platform pass on at least.
_MAX_BYTES = 8192
_MAX_MEMBERS = 64
#: Fields of requests in all formats that hold what the model is asked.
_ASKED = frozenset({"contents", "input", "instructions", "messages", "prompt", "system", "systemInstruction", "tools"})


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be run elsewhere on the account of whoever calls `carry` now.

    For ``threading.Thread(target=carry(work))``, ``loop.run_in_executor(None, carry(work), item)``,
    ``background.add_task(carry(work))``: wherever and whenever it runs, its calls are attributed as if made here, and
    the blocks that are open here count them in their totals, even after they have ended. Coroutine functions and
    generator functions of both kinds are carried as what they are. In another process (a process pool) the
    attribution holds, but totals are not handed back.

    Args:
        function: Any function; for a generator pass the function, not what it returned.

    Raises:
        ConfigurationError: not a function.

    Examples:
        >>> with attribute(member="ada"):  # doctest: +SKIP
        ...     threading.Thread(target=carry(summarise), args=(text,)).start()
    """
    if not callable(function):  # pyright: ignore[reportUnnecessaryComparison] - who has no type checker needs the hint
        raise ConfigurationError(
            f"carry() takes a function to run elsewhere, not {type(function).__name__}; pass the function itself, "
            "without calling it."
        )
    scopes = current_scopes()
    for scope in scopes:
        scope.begun = True  # its calls are on their way
    # A partial, since that is pickled with what it carries, and every framework looks through it.
    carried = functools.partial(runner_of(function), functools.partial(scopes_set_to, scopes), function)
    return cast("Callable[P, R]", functools.update_wrapper(carried, function))


class CarryingExecutor(Executor):
    """An executor whose work is attributed as its submitter is at that moment.

    Args:
        executor: Does the work: a thread pool, a process pool, or another `concurrent.futures.Executor`. It is shut
            down with this one.

    Examples:
        >>> pool = CarryingExecutor(ThreadPoolExecutor(8))  # doctest: +SKIP
        >>> with attribute(member="ada"), pool:  # doctest: +SKIP
        ...     answers = list(pool.map(summarise, texts))
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """As `concurrent.futures.Executor.submit`."""
        return self._executor.submit(carry(fn), *args, **kwargs)

    def map(self, fn: Callable[..., R], *iterables: Iterable[Any], **options: Any) -> Iterator[R]:
        """As `concurrent.futures.Executor.map`."""
        return self._executor.map(carry(fn), *iterables, **options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


@tell_wrong_arguments
def to_headers(
    headers: Mapping[str, str] | None = None, *, attribution: Attribution | Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The present attribution as HTTP or message headers (W3C baggage), for `from_headers` at the other end.

    Args:
        headers: Headers that go along; a ``baggage`` of somebody else's among them is kept.
        attribution: What to send instead of the present attribution.

    Returns:
        `headers` with ours: ``{"baggage": "tokenmeter.member=ada,tokenmeter.route=%2Fsummarise"}``.

    Raises:
        ConfigurationError: the baggage would be larger than what proxies and services must pass on (8,192 bytes, 64
            members).
    """
    found = dict(headers or {})
    name = next(filter(_is_baggage, found), BAGGAGE)
    baggage = to_baggage(found.get(name, ""), attribution=attribution)
    count = len(_members(baggage))
    if len(baggage) > _MAX_BYTES or count > _MAX_MEMBERS:
        raise ConfigurationError(
            f"The attribution does not fit into baggage ({count} members, {len(baggage)} bytes; {_MAX_MEMBERS} "
            f"and {_MAX_BYTES} are passed on everywhere); send fewer tags: to_headers(attribution=Attribution(...))."
        )
    return {**found, name: baggage} if baggage else found


def to_baggage(others: str = "", *, attribution: Attribution | Mapping[str, Any] | None = None) -> str:
    """The attribution as the value of that header, of any length, after the members of `others` that are not ours."""
    members = [member for member in _members(others) if not member.startswith(_OURS)]
    for scope in current_scopes():
        scope.begun = True  # its calls are made elsewhere
    sent = current_attribution() if attribution is None else Attribution.of(attribution)
    named = {dimension: getattr(sent, dimension) for dimension in WHO}
    tags = {f"{_TAG}{quote(tag, safe='')}": value for tag, value in sent.tags.items()}
    members += [f"{_OURS}{key}={quote(value, safe='')}" for key, value in {**named, **tags}.items() if value]
    return ",".join(members)


@tell_wrong_arguments
def from_headers(headers: Mapping[str, Any]) -> Attribution:
    """The attribution that `to_headers` put into `headers`; nobody's when there is none.

    Whoever sends a header chooses who pays: use it between services of your own, and take ``baggage`` off at the
    edge. What is not ours or cannot be read is passed over.

    Args:
        headers: Names (in any case) to values, as text or bytes.

    Raises:
        ConfigurationError: that is no mapping.

    Examples:
        >>> with attribute(from_headers(request.headers)):  # doctest: +SKIP
        ...     client.responses.create(...)
    """
    if not hasattr(headers, "items"):
        raise ConfigurationError(
            f"from_headers takes a mapping of names to values, not {shown(headers)}; make one of pairs with dict(...)."
        )
    return from_baggage(",".join(_as_text(value) for name, value in headers.items() if _is_baggage(name)))


def from_baggage(value: object) -> Attribution:
    """The attribution that `to_baggage` put into `value`; nobody's for what is no such value."""
    found = NOBODY
    for member in _members(_as_text(value)):
        key, _, encoded = member.partition(";")[0].partition("=")
        key, content = key.strip().removeprefix(_OURS), unquote(encoded.strip())
        if not member.startswith(_OURS):
            continue
        try:
            if key in WHO:
                named: dict[str, Any] = {key: content}
                found = Attribution(**named).over(found)
            elif key.startswith(_TAG):
                found = Attribution(tags={unquote(key.removeprefix(_TAG)): content}).over(found)
        except ConfigurationError:  # too long, or control characters
            continue
    return found


def _is_baggage(name: Any) -> bool:
    return _as_text(name).lower() == BAGGAGE


def _as_text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _members(baggage: str) -> list[str]:
    return [member.strip() for member in baggage.split(",") if member.strip()]


# -- what a request says of itself


class RequestFields:
    """Takes the end user and tags from fields that the caller puts into its requests for the provider anyway.

    Args:
        end_user: Fields that name the end user (``safety_identifier``, ``user``, ``metadata.user_id``): the first
            that is set counts.
        tags: Fields that become tags: ``metadata`` takes each of its members under its own name, ``metadata.feature``
            one of them.

    Raises:
        ConfigurationError: a field is what the model is asked, which a ledger never keeps.
    """

    def __init__(self, end_user: Sequence[str] = (), tags: Sequence[str] = ()) -> None:
        for setting, names in (("end_user_from", end_user), ("tags_from", tags)):
            for name in names:
                if name.partition(".")[0] in _ASKED:
                    raise ConfigurationError(
                        f"{setting}: {shown(name)} is what the model is asked, which is never kept; name a field that "
                        "says who asks, such as user, safety_identifier or metadata.user_id."
                    )
        self._end_user = tuple(tuple(name.split(".")) for name in end_user)
        self._tags = tuple(tuple(name.split(".")) for name in tags)

    def read(self, body: Mapping[str, Any] | None) -> Attribution:
        """What `body` says; what cannot be a name is passed over, since it must not stop the call."""
        if not body:
            return NOBODY
        users = (_text_at(body, path) for path in self._end_user)
        found = NOBODY
        for user in users:
            if user is not None and (taken := _taken(end_user=user)) is not None:
                found = taken
                break
        for path in self._tags:
            value = _value_at(body, path)
            members: Mapping[Any, Any] = value if isinstance(value, Mapping) else {path[-1]: value}  # pyright: ignore[reportUnknownVariableType]
            for name, content in members.items():
                if isinstance(name, str) and isinstance(content, str):
                    found = (_taken(tags={name: content}) or NOBODY).over(found)
        return found


def _taken(**fields: Any) -> Attribution | None:
    try:
        return Attribution(**fields)
    except ConfigurationError:  # empty, too long, control characters
        return None


def _value_at(body: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = body
    for name in path:
        value = cast("Mapping[str, Any]", value).get(name) if isinstance(value, Mapping) else None
    return value


def _text_at(body: Mapping[str, Any], path: Sequence[str]) -> str | None:
    value = _value_at(body, path)
    return value if isinstance(value, str) else None
