"""Acting from the pages: every form leads to a page that says what will happen, and only that page's button does it.

The deeds are those of the API (`tokenmeter.serving.acting`), for a token with the right to. A form is taken only from a
page that its sender was shown (`check_own_page`), and what is done is what was shown: where the ledger has changed in
between, it is shown again. A button that is pressed twice does it once, and leads to the same page both times.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmeter.api import Meter
from tokenmeter.dashboard.deeds import ACTS, Act
from tokenmeter.dashboard.rendering import REFUSED, Refused, missing, page
from tokenmeter.dashboard.security import base_of, check_own_page
from tokenmeter.errors import LedgerError, StoreError, TokenmeterError
from tokenmeter.serving.access import ACCESS, Access
from tokenmeter.values import dataclass

_LONGEST_FORM = 20_000
#: Pages that have forms, and end: none of the files, and not the live events.
_WITH_FORMS = re.compile(r"/(account|budgets|doubts|invoices|periods)([/?]|$)")
#: Deeds whose second press is still known.
_MOST_DONE = 1_000
#: A form that is refused for another reason is one to be mended.
_STATUS = {LedgerError: HTTPStatus.CONFLICT, StoreError: HTTPStatus.SERVICE_UNAVAILABLE}


@dataclass(slots=True)
class _Doing:
    """A press that is being answered.

    Attributes:
        lock: Held by whoever answers it.
        waiting: How many hold it or wait for it.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


class Acts:
    """The forms' other ends.

    Args:
        meter: The whole: who acts sees everything.
        pages: Shows the page that a form is on.
    """

    def __init__(self, meter: Meter, pages: ASGIApp) -> None:
        self._meter, self._pages = meter, pages
        self._done: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._lock = threading.Lock()
        self._doing: dict[tuple[str, ...], _Doing] = {}

    def routes(self) -> list[Route]:
        """Where the forms go."""
        return [Route("/acts/{what}", self.act, methods=["POST"])]

    async def act(self, request: Request) -> ASGIApp:
        """Show what a form would do; do it once that was confirmed."""
        body = (await request.body())[:_LONGEST_FORM]
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        try:
            check_own_page(request, form.pop("proof", ""))
            return await run_in_threadpool(self._act, request, form)
        except HTTPException as error:
            status, back = error.status_code, _path_back(form)
            title = HTTPStatus(status).phrase
            return page(request, "error.html", status=status, title=title, message=error.detail, back=back)

    def _act(self, request: Request, form: dict[str, str]) -> ASGIApp:
        what = request.path_params["what"]
        act = ACTS.get(what)
        if act is None:
            return missing(request, "No such deed", f"What can be done is {', '.join(ACTS)}.")
        access: Access = request.scope[ACCESS]
        if act.right not in access.can or access.scope.conditions:
            raise HTTPException(403, f"Your token has no right to act on {act.right}.")
        confirmed = form.pop("confirmed", "")
        key = form.setdefault("key", secrets.token_hex(16))
        press = (access.name, what, key, confirmed)
        with self._pressing(press):
            return self._press(request, access, act, form, press)

    @contextmanager
    def _pressing(self, press: tuple[str, ...]) -> Generator[None]:
        """One of the same at a time: the second press of a double click waits for what the first one did."""
        with self._lock:
            doing = self._doing.setdefault(press, _Doing())
            doing.waiting += 1
        try:
            with doing.lock:
                yield
        finally:
            with self._lock:
                doing.waiting -= 1
                if not doing.waiting:
                    del self._doing[press]

    def _press(
        self, request: Request, access: Access, act: Act, form: dict[str, str], press: tuple[str, ...]
    ) -> ASGIApp:
        _, what, key, confirmed = press
        if there := self._done.get(press):
            return RedirectResponse(there, status_code=303)
        try:
            told = act.tell(form, act.run(self._meter, form, access.name, key, True))  # noqa: FBT003 - as Act says
            # The seal stands for what was shown: where the ledger has changed since, the new state is shown instead.
            if told.button and confirmed == told.seal:
                done = act.run(self._meter, form, access.name, key, False)  # noqa: FBT003 - as above
                return self._remember(press, f"{base_of(request)}{act.then(form, done)}")
        except (TokenmeterError, ValidationError) as error:
            return _FormAgain(self._pages, _refuse(what, form, error), _path_back(form))
        return page(
            request,
            "confirm.html",
            title=told.title,
            told=told,
            changed=bool(confirmed),
            fields=form,
            who=access.name,
            back=_path_back(form),
        )

    def _remember(self, press: tuple[str, ...], there: str) -> Response:
        with self._lock:
            self._done[press] = there
            while len(self._done) > _MOST_DONE:
                self._done.popitem(last=False)
        return RedirectResponse(there, status_code=303)


def _path_back(form: Mapping[str, str]) -> str:
    """The page that a form is on."""
    # A path of ours: what begins with two slashes of either kind would lead elsewhere.
    return form["back"] if re.match(r"/(?![/\\])", form.get("back", "")) else "/"


def _refuse(what: str, form: dict[str, str], error: Exception) -> Refused:
    status = next((one for kind, one in _STATUS.items() if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
    words = str(error)
    if isinstance(error, ValidationError):
        words = "; ".join(f"{'.'.join(map(str, one['loc']))}: {_tell_mistake(one)}" for one in error.errors())
    return Refused(what, form, words, status)


class _FormAgain:
    """The page of a form that was refused, with the reason at the form and with what was typed in it.

    Args:
        pages: Shows every page.
        refused: The form.
        back: Path and query of its page.
    """

    def __init__(self, pages: ASGIApp, refused: Refused, back: str) -> None:
        self._pages, self._refused, self._back = pages, refused, back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Show it; where the page has that form no more (somebody paid the invoice), the reason by itself."""
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        if _WITH_FORMS.match(self._back):
            try:
                await self._pages(self._asking_for_page(scope), receive, keep)
            except (TokenmeterError, HTTPException):
                sent.clear()
        body = b"".join(one.get("body", b"") for one in sent)
        if f'id="refused-{self._refused.what}"'.encode() not in body:
            title, status = "That cannot be done", self._refused.status
            answer = page(
                Request(scope), "error.html", status=status, title=title, message=self._refused.words, back=self._back
            )
            await answer(scope, receive, send)
            return
        for message in sent:
            await send(message)

    def _asking_for_page(self, scope: Scope) -> Scope:
        path, _, query = self._back.partition("?")
        return {
            **scope,
            "method": "GET",
            "path": unquote(base_of(scope) + path),
            "raw_path": (base_of(scope) + path).encode(),
            "query_string": query.partition("#")[0].encode(),
            "path_params": {},
            REFUSED: self._refused,
        }


def _tell_mistake(found: ErrorDetails) -> str:
    return "it is needed, and was left empty." if found["type"] == "string_too_short" else found["msg"]
