"""A Flask service: the team comes from a header, the user from the session that a hook has looked up.

Run it with ``gunicorn with_flask:app``; the client finds the provider through OPENAI_BASE_URL and OPENAI_API_KEY.
Whoever asks says who they are: ``curl -H "x-user: ada" http://127.0.0.1:8000/plain``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask, Response, abort, request

from tokenmeter import CarryingExecutor
from tokenmeter.openai import OpenAI
from tokenmeter.web import AttributionMiddleware, attribute_request

app = Flask(__name__)
app.wsgi_app = AttributionMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, attribution=lambda request: {"team": request.headers.get("x-team"), "route": request.path}
)
client = OpenAI()
pool = CarryingExecutor(ThreadPoolExecutor(4))


@app.before_request
def find_user() -> None:
    """Once it is known who asks."""
    attribute_request(member=request.headers.get("x-user") or abort(401))


def ask(text: str) -> str | None:
    """One call."""
    answer = client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


@app.get("/plain")
def plain() -> dict[str, Any]:
    """One answer."""
    return {"answer": ask("plain")}


@app.get("/parallel")
def parallel() -> dict[str, Any]:
    """Several calls side by side, in threads of our own."""
    return {"answers": list(pool.map(ask, ["one", "two", "three"]))}


@app.get("/stream")
def stream() -> Response:
    """A streamed answer, read after the view has returned."""
    words = int(request.args.get("words", 20))

    def body() -> Iterator[str]:
        for chunk in client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": "word " * words}], stream=True
        ):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    return Response(body(), mimetype="text/plain")
