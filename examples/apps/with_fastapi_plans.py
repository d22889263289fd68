"""A FastAPI service that sells plans: what a customer may spend stands in its own database and changes while it runs.

Run it with ``uvicorn with_fastapi_plans:app``. The client reads OPENAI_BASE_URL and OPENAI_API_KEY.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse

import tokenmeter
from tokenmeter.openai import AsyncOpenAI

SCHEMA = """
CREATE TABLE IF NOT EXISTS plans (name TEXT PRIMARY KEY, usd_a_month TEXT, calls_a_month INTEGER);
CREATE TABLE IF NOT EXISTS customers (name TEXT PRIMARY KEY, plan TEXT NOT NULL REFERENCES plans);
INSERT OR IGNORE INTO plans VALUES ('free', '0.50', 3), ('pro', '50.00', NULL), ('closed', '0', 0);
"""


class Database:
    """Stands for an asynchronous driver: what it holds belongs to the event loop on which it was opened."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.executescript(SCHEMA)
        self._turn = asyncio.Lock()

    async def query(self, sql: str, *values: Any) -> list[Any]:
        """The rows of a statement."""
        async with self._turn:
            return await asyncio.to_thread(lambda: self._connection.execute(sql, values).fetchall())

    def close(self) -> None:
        """Close it."""
        self._connection.close()


async def limit_of(customer: str) -> dict[str, Any] | None:
    """What a customer's plan allows in a month; None for whom the database does not know."""
    rows = await app.state.database.query(
        "SELECT usd_a_month, calls_a_month FROM plans JOIN customers ON plan = plans.name WHERE customers.name = ?",
        customer,
    )
    if not rows:
        return None
    usd, calls = rows[0]
    return {"usd": usd, "requests": "unlimited" if calls is None else calls}


@asynccontextmanager
async def lifespan(service: FastAPI) -> AsyncIterator[None]:
    """The database is opened on the loop that serves."""
    service.state.database = Database(os.environ.get("CUSTOMERS", "customers.db"))
    yield
    service.state.database.close()


app = FastAPI(lifespan=lifespan)
meter = tokenmeter.configure(
    # Whom the database does not know may spend nothing, and so may everybody while it has never answered.
    budgets=[tokenmeter.Budget(member="*", limit=limit_of, limit_usd=0, limit_requests=0, refresh=60, name="plans")],
)
client = AsyncOpenAI()


async def customer(x_user: Annotated[str, Header()]) -> AsyncIterator[str]:
    """On whose account the request goes."""
    with tokenmeter.attribute(member=x_user):
        yield x_user


@app.exception_handler(tokenmeter.BudgetExceededError)
async def stopped(_: Request, stop: tokenmeter.BudgetExceededError) -> JSONResponse:
    """A call that the plan does not allow was never sent."""
    wait = {} if stop.retry_after is None else {"retry-after": str(int(stop.retry_after) + 1)}
    return JSONResponse({"detail": stop.message(redact=True)}, status_code=429, headers=wait)


@app.post("/ask")
async def ask(name: Annotated[str, Depends(customer)], question: str) -> dict[str, Any]:
    """One call of the customer's."""
    answer = await client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": question}], max_completion_tokens=200
    )
    return {"customer": name, "answer": answer.choices[0].message.content}


@app.get("/account")
async def account(name: Annotated[str, Depends(customer)]) -> list[dict[str, Any]]:
    """What is left of the plan."""
    return [
        {"unit": balance.unit, "limit": str(balance.limit), "left": str(balance.remaining)}
        for balance in await tokenmeter.aremaining(member=name)
    ]


@app.put("/plan/{plan}")
async def change_plan(name: Annotated[str, Depends(customer)], plan: str) -> dict[str, str]:
    """The customer bought another plan: it holds with this worker's next call, in others within `refresh` seconds."""
    if not await app.state.database.query("SELECT 1 FROM plans WHERE name = ?", plan):
        raise HTTPException(404, "There is no such plan.")
    await app.state.database.query(
        "INSERT INTO customers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET plan = excluded.plan", name, plan
    )
    meter.budgets.forget_limits("plans", name)
    return {"customer": name, "plan": plan}
