"""Errors over the wire, as RFC 9457 has them: what went wrong, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from tokenmeter.errors import ConfigurationError, LedgerError, StoreError, TokenmeterError, UnknownModelError
from tokenmeter.serving.access import ACCESS, Access
from tokenmeter.serving.shapes import ResponsePart


class Problem(ResponsePart):
    """What went wrong, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: Sequence[Mapping[str, Any]] = ()
) -> Response:
    """An error as RFC 9457 has it."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = list(errors)
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How these are described."""
    content: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


#: Of a fault of ours nothing is told; the server logs it behind the answer.
BROKEN = "Something failed inside; the log of the server says what."
_AWAY = "The ledger does not answer now; try again in a moment."
#: What any path may answer besides what it is for.
PROBLEMS = problems(400, 401, 403, 408, 413, 421, 422, 429, 431, 500, 503)


def tell_error(request: Request, error: Exception) -> str:
    """An error's words. Who sees a part of the ledger is not told where the whole lies, and why that cannot be read."""
    access: Access = request.scope.get(ACCESS) or Access()
    if not access.scope.conditions or isinstance(error, ConfigurationError | UnknownModelError):
        return str(error)
    return _AWAY if isinstance(error, StoreError) else BROKEN


def _failed(request: Request, error: Exception) -> Response:
    words = tell_error(request, error)
    if isinstance(error, UnknownModelError):
        return problem(404, words)
    if isinstance(error, StoreError):
        return problem(503, words, headers={"retry-after": "5"})
    if isinstance(error, LedgerError):
        return problem(409, words)
    return problem(400 if isinstance(error, ConfigurationError) else 500, words)


def keep_to_path(request: Request) -> None:
    """Refuse a method that a path does not have, though the paths above it have it: `POST` of a budget's history.

    The history's name is no part of the budget's, which would be defined under both.

    Raises:
        HTTPException: the route that says most of this path has other methods.
    """
    if request.method not in _allowed(request).split(", "):
        raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)


def _allowed(request: Request) -> str:
    """The methods of every route that has this path: the router names those of the first alone.

    A number may have a slash in it, so that ``/invoices/{number}`` has the paths below it as well. These are of the
    route that says more of them.
    """
    of: dict[int, set[str]] = {}
    for route in request.app.routes:
        if isinstance(route, Route) and route.methods and route.matches(request.scope)[0] is not Match.NONE:
            of.setdefault(route.path_format.count("/"), set()).update(route.methods)
    found = of[max(of)]
    if "GET" in found:
        found.add("HEAD")  # asked for as a GET
    return ", ".join(sorted(found))


def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    words = error.detail if error.detail != HTTPStatus(error.status_code).phrase else "There is nothing at this path."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        words = "That cannot be done here; the API's description says what can."
        return problem(error.status_code, words, headers={"allow": _allowed(request)})
    return problem(error.status_code, words, headers=error.headers)


def _mistaken(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found = [{"where": ".".join(map(str, one["loc"])), "detail": str(one["msg"])} for one in error.errors()]
    return problem(422, "; ".join(f"{one['where']}: {one['detail']}" for one in found), errors=found)


def _out_of_time(_: Request, __: Exception) -> Response:
    return problem(400, "That date lies beyond the calendar; choose one between the years 2 and 9998.")


def _broken(_: Request, __: Exception) -> Response:
    return problem(500, BROKEN)


def tell_problems(api: FastAPI) -> None:
    """Let `api` answer every error as a problem, and describe what that is: no path returns it as its model."""
    api.add_exception_handler(TokenmeterError, _failed)
    api.add_exception_handler(RequestValidationError, _mistaken)
    api.add_exception_handler(HTTPException, _refused)
    api.add_exception_handler(OverflowError, _out_of_time)
    api.add_exception_handler(Exception, _broken)
    describe = api.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        shape = Problem.model_json_schema()
        schema.setdefault("components", {}).setdefault("schemas", {}).setdefault("Problem", shape)
        return schema

    api.openapi = described  # type: ignore[method-assign]
