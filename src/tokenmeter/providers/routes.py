"""From HTTP method and URL path to the SDK method that makes such a request: a table per provider, one rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote

from tokenmeter.providers.base import Endpoint, Form, Kind


@dataclass(frozen=True, slots=True)
class _Route:
    methods: frozenset[str]
    segments: tuple[str, ...]  # "*" stands for any one
    endpoint: Endpoint


class Routes:
    """The endpoints of one API.

    Rows are ``METHOD /path sdk.method.path operation``, with an answer's form behind where it holds many bills
    (``lines``, ``items``).

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
        if start is None:
            # Nothing we know: a POST may cost something, so it is looked at; nothing else is.
            return Endpoint("/" + "/".join(segments), "other", "unknown" if method == "POST" else "free")
        for index in range(start, len(segments)):
            for route in self._routes:
                # Behind the first resource's name only a bill counts: a base path may hold such a name as well.
                at_start = index == start or route.endpoint.kind in {"billed", "polled"}
                if at_start and method in route.methods and _fits(route.segments, segments[index:]):
                    return _about(route, segments[index:])
        tail = segments[start:]
        paid = method == "POST" and tail[0] in self._paid_roots
        return Endpoint("/" + "/".join(tail), "other", "unknown" if paid else "free")

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
