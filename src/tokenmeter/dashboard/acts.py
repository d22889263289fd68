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
from http import HTTPStatus
from urllib.parse import parse_qsl

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from tokenmeter.api import Meter
from tokenmeter.dashboard.deeds import ACTS
from tokenmeter.dashboard.rendering import base_of, missing, page
from tokenmeter.dashboard.security import check_own_page
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.serving.access import ACCESS, Access

_LONGEST_FORM = 20_000
#: Deeds whose second press is still known.
_MOST_DONE = 1_000


class Acts:
    """The forms' other ends.

    Args:
        meter: The whole: who acts sees everything.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._done: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        """Where the forms go."""
        return [Route("/acts/{what}", self.act, methods=["POST"])]

    async def act(self, request: Request) -> Response:
        """Show what a form would do; do it once that was confirmed."""
        body = (await request.body())[:_LONGEST_FORM]
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        check_own_page(request, form.pop("proof", ""))
        return await run_in_threadpool(self._act, request, form)

    def _act(self, request: Request, form: dict[str, str]) -> Response:
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
        if there := self._done.get(press):
            return RedirectResponse(there, status_code=303)
        try:
            told = act.tell(form, act.run(self._meter, form, access.name, key, True))  # noqa: FBT003 - as Act says
            # The seal stands for what was shown: where the ledger has changed since, the new state is shown instead.
            if told.button and confirmed == told.seal:
                done = act.run(self._meter, form, access.name, key, False)  # noqa: FBT003 - as above
                return self._remember(press, f"{base_of(request)}{act.then(form, done)}")
        except (LedgerError, ConfigurationError, ValidationError) as error:
            return _tell_refusal(request, error)
        return page(
            request,
            "confirm.html",
            title=told.title,
            told=told,
            changed=bool(confirmed),
            fields=form,
            who=access.name,
            # A path of ours: //host and /\host would lead elsewhere.
            back=form["back"] if re.match(r"/(?![/\\])", form.get("back", "")) else "/",
        )

    def _remember(self, press: tuple[str, ...], there: str) -> Response:
        with self._lock:
            self._done[press] = there
            while len(self._done) > _MOST_DONE:
                self._done.popitem(last=False)
        return RedirectResponse(there, status_code=303)


def _tell_refusal(request: Request, error: Exception) -> Response:
    status = HTTPStatus.CONFLICT if isinstance(error, LedgerError) else HTTPStatus.BAD_REQUEST
    words = str(error)
    if isinstance(error, ValidationError):
        words = "; ".join(f"{'.'.join(map(str, one['loc']))}: {_tell_mistake(one)}" for one in error.errors())
    return page(request, "error.html", status=status, title="That cannot be done", message=words)


def _tell_mistake(found: ErrorDetails) -> str:
    return "it is needed, and was left empty." if found["type"] == "string_too_short" else found["msg"]
