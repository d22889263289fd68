"""A FastAPI service: who pays is known from a header, a dependency or the endpoint; every way to answer is attributed.

Run it with ``uvicorn with_fastapi:app``; the clients find the provider through OPENAI_BASE_URL and OPENAI_API_KEY.
Whoever asks says who they are: ``curl -H "x-user: ada" http://127.0.0.1:8000/plain``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Header, WebSocket
from fastapi.responses import StreamingResponse

import tokenmeter
from tokenmeter.openai import AsyncOpenAI, OpenAI
from tokenmeter.web import AttributionMiddleware, Request, attribute_request

app = FastAPI()
client, async_client = OpenAI(), AsyncOpenAI()
MODEL = "gpt-5-mini"


def account(request: Request) -> tokenmeter.Attribution:
    """Known from the request itself: the team's header and the path."""
    return tokenmeter.Attribution(team=request.headers.get("x-team"), route=request.path)


app.add_middleware(AttributionMiddleware, attribution=account)


def current_user(x_user: Annotated[str, Header()]) -> Iterator[str]:
    """A synchronous dependency runs in a thread: what it says of the request holds, a block of its own would not."""
    attribute_request(member=x_user)
    yield x_user


async def session_user(x_user: Annotated[str, Header()]) -> AsyncIterator[str]:
    """An asynchronous one may open a block; it ends with the request."""
    with tokenmeter.attribute(member=x_user):
        yield x_user


def ask(text: str) -> str | None:
    """One call."""
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


async def ask_async(text: str) -> str | None:
    """One call."""
    answer = await async_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


@app.get("/plain")
def plain(user: Annotated[str, Depends(current_user)]) -> dict[str, Any]:
    """A synchronous endpoint."""
    return {"user": user, "answer": ask("plain")}


@app.get("/async")
async def asynchronous(user: Annotated[str, Depends(session_user)]) -> dict[str, Any]:
    """An asynchronous endpoint."""
    return {"user": user, "answer": await ask_async("async")}


@app.get("/mixed")
async def mixed(user: Annotated[str, Depends(current_user)]) -> dict[str, Any]:
    """An asynchronous endpoint behind a synchronous dependency."""
    return {"user": user, "answer": await ask_async("mixed")}


@app.get("/stream")
async def stream(x_user: Annotated[str, Header()], words: int = 20) -> StreamingResponse:
    """A streamed answer, read while it is sent."""
    attribute_request(member=x_user)

    async def body() -> AsyncIterator[str]:
        chunks = await async_client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * words}], stream=True
        )
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    return StreamingResponse(body(), media_type="text/plain")


@app.get("/background")
async def background(user: Annotated[str, Depends(current_user)], later: BackgroundTasks) -> dict[str, str]:
    """Work after the answer, in a thread and on the loop."""
    later.add_task(ask, "background")
    later.add_task(ask_async, "background")
    return {"user": user}


@app.websocket("/socket")
async def socket(connection: WebSocket) -> None:
    """A conversation; every message is a call of its sender's."""
    await connection.accept()
    attribute_request(member=connection.headers["x-user"])
    async for text in connection.iter_text():
        await connection.send_text(await ask_async(text) or "")
