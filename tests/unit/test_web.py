"""What the middleware does to requests, and never to answers."""

from __future__ import annotations

import io
import threading
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest

from tokenmeter.attribution import NOBODY, Attribution, attribute, current_attribution
from tokenmeter.errors import ConfigurationError
from tokenmeter.web import (
    AsgiAttributionMiddleware,
    AttributionMiddleware,
    Request,
    WsgiAttributionMiddleware,
    attribute_request,
)

SCOPE = {"type": "http", "method": "GET", "path": "/a", "headers": [(b"x-user", b"ada"), (b"x-user", b"grace")]}


async def asgi(scope, receive, send):
    await send(current_attribution())


def wsgi(environ, start_response):
    start_response("200 OK", [])
    yield current_attribution()


def environ(**more):
    made = {"PATH_INFO": "/a", "HTTP_X_USER": "ada", "CONTENT_TYPE": "text/plain", **more}
    setup_testing_defaults(made)
    return made


async def answer(app, scope=SCOPE):
    sent = []

    async def send(message):
        sent.append(message)

    await app(scope, None, send)
    return sent


def by_user(request):
    return {"member": request.headers["x-user"], "route": request.path}


async def test_an_asgi_request():
    app = AttributionMiddleware(asgi, attribution=by_user)
    assert isinstance(app, AsgiAttributionMiddleware)
    assert await answer(app) == [Attribution(member="ada,grace", route="/a")]
    assert current_attribution() is NOBODY


async def test_a_coroutine_function_may_look_who_it_is():
    async def look_up(request):
        return Attribution(member="ada")

    assert await answer(AttributionMiddleware(asgi, attribution=look_up)) == [Attribution(member="ada")]


async def test_without_a_function_and_for_none_it_is_nobodys_until_more_is_known():
    async def learns(scope, receive, send):
        await send(current_attribution())
        thread = threading.Thread(target=__import__("contextvars").copy_context().run, args=(learn,))
        thread.start()
        thread.join()
        await send(current_attribution())

    def learn():
        attribute_request(Attribution(member="ada", team="a"), team="b", tags={"x": "1"})

    for function in (None, lambda request: None):
        app = AttributionMiddleware(learns, attribution=function)
        assert await answer(app) == [NOBODY, Attribution(member="ada", team="b", tags={"x": "1"})]


async def test_the_start_of_a_server_is_no_request():
    app = AttributionMiddleware(asgi, attribution=lambda request: pytest.fail("asked"))
    assert await answer(app, {"type": "lifespan"}) == [NOBODY]


def test_a_wsgi_request_and_every_piece_of_its_body():
    app = AttributionMiddleware(wsgi, attribution=by_user)
    assert isinstance(app, WsgiAttributionMiddleware)
    assert list(app(environ(), lambda *_: None)) == [Attribution(member="ada", route="/a")]
    assert current_attribution() is NOBODY


@pytest.mark.parametrize("path", ["/x/größe", "/x/résumé", "/x/日本", "/x/a b", "/"])
async def test_a_path_is_what_the_application_sees_in_any_letters(path):
    of_path = AttributionMiddleware(wsgi, attribution=lambda request: {"route": request.path})
    as_sent = path.encode().decode("latin-1")  # PEP 3333
    assert list(of_path(environ(PATH_INFO=as_sent), lambda *_: None)) == [Attribution(route=path)]
    of_asgi = AttributionMiddleware(asgi, attribution=lambda request: {"route": request.path})
    assert await answer(of_asgi, {**SCOPE, "path": path}) == [Attribution(route=path)]


def test_a_path_that_the_server_decoded_is_taken_as_it_is():
    of_path = AttributionMiddleware(wsgi, attribution=lambda request: {"route": request.path})
    assert list(of_path(environ(PATH_INFO="/x/日本"), lambda *_: None)) == [Attribution(route="/x/日本")]


def test_a_block_inside_a_body_holds_from_piece_to_piece_and_not_in_the_next_request():
    """As a view that streams an agent's turns; between two pieces the server's thread may do other work."""

    def streams(environ, start_response):
        with attribute(member="ada"):
            yield current_attribution()
            yield current_attribution()

    app = AttributionMiddleware(streams, attribution=lambda request: {"route": request.path})
    inside = Attribution(member="ada", route="/a")
    assert [(piece, current_attribution()) for piece in app(environ(), None)] == [(inside, NOBODY)] * 2
    dropped = app(environ(), None)
    next(dropped)
    dropped.close()
    assert current_attribution() is NOBODY


def test_a_body_is_closed_inside_the_block():
    seen = []

    def body(environ, start_response):
        try:
            yield b"1"
            yield b"2"
        finally:
            seen.append(current_attribution().member)

    pieces = AttributionMiddleware(body, attribution=by_user)(environ(), None)
    next(pieces)
    pieces.close()
    assert seen == ["ada"]


def test_bodies_that_servers_send_in_ways_of_their_own_pass_as_they_are():
    whole, file = [b"whole"], FileWrapper(io.BytesIO(b"file"))
    for body in (whole, file):
        app = WsgiAttributionMiddleware(lambda environ, start_response, body=body: body)
        assert app(environ(**{"wsgi.file_wrapper": FileWrapper}), None) is body


def test_both_kinds_of_request_read_alike():
    for request in (Request(SCOPE), Request(environ(REQUEST_METHOD="GET", HTTP_X_USER="ada,grace"))):
        assert (request.method, request.path, request.headers["x-user"]) == ("GET", "/a", "ada,grace")
        assert repr(request) == "<Request GET /a>"
    assert Request(SCOPE)["headers"] == SCOPE["headers"]
    assert Request(environ())["HTTP_X_USER"] == "ada"
    assert Request(environ()).headers["content-type"] == "text/plain"
    assert Request({"type": "websocket", "path": "/"}).method == "WEBSOCKET"


@pytest.mark.parametrize(("returned", "message"), [
    ({"user": "ada"}, "unknown fields: user"), ("ada", "not str"), ({"member": 7}, "member must be"),
    ({"tags": {"plan": 7}}, "tag 'plan' must be"), (7, "not int"),
])  # fmt: skip
async def test_what_a_function_must_not_return(returned, message):
    with pytest.raises(ConfigurationError, match=message):
        await answer(AttributionMiddleware(asgi, attribution=lambda request: returned))


BAD = {"empty": "", "too long": "a" * 513, "a line break": "a\nb", "half a letter": "\udc80", "blanks": " \u3000"}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
@pytest.mark.parametrize("kind", [dict, Attribution], ids=["a mapping", "an attribution"])
@pytest.mark.parametrize("awaited", [False, True], ids=["", "awaited"])
async def test_what_a_client_sends_breaks_no_request(awaited, kind, text, monkeypatch, caplog):
    monkeypatch.setattr("tokenmeter.web._told", set())
    attribution = function = lambda request: kind(member=text, route="/a", tags={"plan": text, "x": "1"})
    if awaited:

        async def function(request):
            return attribution(request)

    expected = Attribution(route="/a", tags={"x": "1"})
    with caplog.at_level("WARNING", "tokenmeter"):
        for _ in range(2):
            assert await answer(AttributionMiddleware(asgi, attribution=function)) == [expected]
            if not awaited:
                app = AttributionMiddleware(wsgi, attribution=function)
                assert list(app(environ(), lambda *_: None)) == [expected]
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "A request is attributed without its member",
        "A request is attributed without its tag",
    ]
    with pytest.raises(ConfigurationError):  # anywhere else it is a fault of the program's
        Attribution(member=text)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
async def test_what_is_only_known_further_in_breaks_no_request(text):
    async def app(scope, receive, send):
        attribute_request(member="ada")
        attribute_request(member=text, team="a")
        await send(current_attribution())
        with pytest.raises(ConfigurationError), attribute(member=text):
            pytest.fail("opened the block")

    assert await answer(AttributionMiddleware(app)) == [Attribution(member="ada", team="a")]


async def test_what_a_function_raises_reaches_the_server():
    with pytest.raises(KeyError):
        await answer(AttributionMiddleware(asgi, attribution=lambda request: request.headers["nonsense"]))


def test_what_is_wrong_is_said_before_the_first_request():
    with pytest.raises(ConfigurationError, match="function of the request"):
        AttributionMiddleware(asgi, attribution=Attribution(member="ada"))
    with pytest.raises(ConfigurationError, match=r"asgi\.py"):
        AttributionMiddleware(lambda request: None)
    with pytest.raises(ConfigurationError, match="AttributionMiddleware"):
        attribute_request(member="ada")
