"""A Django project in one file, for WSGI and ASGI: the middleware around the application, the user added by a view.

Run it with ``gunicorn with_django:application`` or ``uvicorn with_django:asgi``; the clients find the provider through
OPENAI_BASE_URL and OPENAI_API_KEY.
Whoever asks says who they are: ``curl -H "x-user: ada" http://127.0.0.1:8000/plain``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from tokenmeter.openai import AsyncOpenAI, OpenAI
from tokenmeter.web import AttributionMiddleware, Request, attribute_request

client, async_client = OpenAI(), AsyncOpenAI()
MODEL = "gpt-5-mini"


def find_user(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Django's middleware: after the one for authentication it would say ``request.user.username``."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if "x-user" not in request.headers:
            return HttpResponse(status=401)
        attribute_request(member=request.headers["x-user"])
        return get_response(request)

    return middleware


def plain(request: HttpRequest) -> JsonResponse:  # noqa: ARG001 - a view
    """A synchronous view."""
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "plain"}])
    return JsonResponse({"answer": answer.choices[0].message.content})


async def asynchronous(request: HttpRequest) -> JsonResponse:  # noqa: ARG001 - a view
    """An asynchronous view."""
    async with AsyncOpenAI() as fresh:  # under WSGI each request has an event loop of its own
        answer = await fresh.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "async"}])
    return JsonResponse({"answer": answer.choices[0].message.content})


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """A streamed answer, read after the view has returned."""
    question: Any = [{"role": "user", "content": "word " * int(request.GET.get("words", "20"))}]

    def body() -> Iterator[str]:
        for chunk in client.chat.completions.create(model=MODEL, messages=question, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    async def body_async() -> AsyncIterator[str]:
        async for chunk in await async_client.chat.completions.create(model=MODEL, messages=question, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    return StreamingHttpResponse(body_async() if hasattr(request, "scope") else body(), content_type="text/plain")


urlpatterns = [path("plain", plain), path("async", asynchronous), path("stream", stream)]


def account(request: Request) -> dict[str, Any]:
    """Known from the request itself."""
    return {"team": request.headers.get("x-team"), "route": request.path}


settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=[f"{__name__}.find_user"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="an example",  # noqa: S106
)
django.setup()
application = AttributionMiddleware(get_wsgi_application(), attribution=account)
asgi = AttributionMiddleware(get_asgi_application(), attribution=account)
