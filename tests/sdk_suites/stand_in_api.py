"""An HTTP server that answers every call of an SDK with the smallest body of the type the SDK expects.

The SDKs' own suites want a mock server that is not on PyPI. This one is told by `note_expected` which type a client is
about to ask for, makes an instance of that type's JSON schema, and needs no API description.
"""

from __future__ import annotations

import functools
import inspect
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter

#: Values of a string that has to be more than a string, by its JSON schema ``format``.
_FORMATS = {"date-time": "2026-01-01T00:00:00Z", "date": "2026-01-01"}
_SCALARS: dict[str, Any] = {"string": "text", "integer": 0, "number": 0.5, "boolean": True, "null": None}
_UNIONS = {"anyOf", "oneOf", "allOf"}
#: Lists that are deeper are empty: types may contain themselves.
_DEEPEST_LIST = 3

_expected: Any = None


def note_expected(client_class: type[Any]) -> None:
    """Have every ``request()`` of `client_class` (an SDK's base client) tell the server what it expects."""
    plain = client_class.request

    if inspect.iscoroutinefunction(plain):

        @functools.wraps(plain)
        async def request(self: Any, cast_to: Any, *args: Any, **kwargs: Any) -> Any:
            _note(cast_to)
            return await plain(self, cast_to, *args, **kwargs)

    else:

        @functools.wraps(plain)
        def request(self: Any, cast_to: Any, *args: Any, **kwargs: Any) -> Any:
            _note(cast_to)
            return plain(self, cast_to, *args, **kwargs)

    client_class.request = request


def _note(cast_to: Any) -> None:
    global _expected  # noqa: PLW0603 - one test runs at a time
    _expected = cast_to


def start() -> str:
    """Serve on a free port of this machine until the process ends; the server's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length") or 0))
        kind, content = _answer_to(sent)
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - name of the base class
        pass


def _answer_to(sent: bytes) -> tuple[str, bytes]:
    try:
        streamed = json.loads(sent).get("stream") is True
    except (ValueError, AttributeError):
        streamed = False
    if streamed:
        return "text/event-stream", b"data: [DONE]\n\n"
    return "application/json", json.dumps(example_of(_expected)).encode()


@functools.cache
def example_of(kind: Any) -> Any:
    """The smallest value that JSON of `kind` can have; an empty object where `kind` has no JSON schema."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schema = TypeAdapter(kind).json_schema()
    except Exception:
        return {}
    return _example(schema, schema.get("$defs", {}), 0)


def _example(schema: dict[str, Any], defined: dict[str, Any], depth: int) -> Any:
    while "$ref" in schema or _UNIONS & schema.keys():
        schema = defined[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else _first(schema)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type", "object")
    if kind == "array":
        return [] if depth > _DEEPEST_LIST else [_example(schema.get("items", {}), defined, depth + 1)]
    if kind == "object":
        required = schema.get("required", ())
        return {name: _example(schema["properties"][name], defined, depth + 1) for name in required}
    return _FORMATS.get(schema.get("format", ""), _SCALARS[kind])


def _first(schema: dict[str, Any]) -> Any:
    return next(schema[union][0] for union in _UNIONS if union in schema)
