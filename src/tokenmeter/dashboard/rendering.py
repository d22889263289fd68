"""Templates: everything that is put into a page is escaped."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from tokenmeter.dashboard import figures
from tokenmeter.dashboard.care import ORIGINS
from tokenmeter.dashboard.questions import FORMS, MEASURES, figure_in, shown_as
from tokenmeter.dashboard.security import base_of, path_of
from tokenmeter.dashboard.view import PERIODS, WITH_PAGE, label_of, label_of_filter
from tokenmeter.dimensions import ACCOUNTS, DIMENSIONS, SCOPE_FIELDS, WHO
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.periods import CALENDAR_UNITS, zone
from tokenmeter.serving.access import ACCESS, PAGE_PROOF, Access, Right
from tokenmeter.stores.engine import condition_on

T = TypeVar("T")
#: Documents on a page of a list.
_ON_A_PAGE = 50
#: Cookie in which the browser tells its time zone.
ZONE = "tokenmeter_zone"
#: Where a request's scope has the form that was refused, for the page that it is on.
REFUSED = "tokenmeter.refused"

#: Path and name of every page in the navigation, and whether it takes the view's period and filters along.
_NAVIGATION = (
    ("/", "Overview", True),
    ("/explore", "Explore", True),
    ("/entries", "Entries", True),
    ("/budgets", "Budgets", False),
    ("/invoices", "Invoices", False),
    ("/periods", "Periods", False),
    ("/reconciliations", "Reconciliation", False),
    ("/statements", "Statements", False),
    ("/prices", "Prices", False),
    ("/doubts", "Not exact", True),
    ("/health", "Health", False),
)
#: Zones offered by name; the field takes every IANA name.
_ZONES = (
    *("UTC", "Africa/Johannesburg", "Africa/Lagos", "America/Chicago", "America/Los_Angeles", "America/New_York"),
    *("America/Sao_Paulo", "Asia/Dubai", "Asia/Kathmandu", "Asia/Kolkata", "Asia/Shanghai", "Asia/Singapore"),
    *("Asia/Tokyo", "Australia/Sydney", "Europe/Berlin", "Europe/London", "Europe/Paris", "Pacific/Auckland"),
)


class Refused(NamedTuple):
    """A form that was not taken.

    Attributes:
        what: What it would have done, by its name in the address.
        form: What was typed.
        words: Why not.
        status: HTTP status.
    """

    what: str
    form: Mapping[str, str]
    words: str
    status: int


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("tokenmeter.dashboard"),
        autoescape=True,
        # A name that a template misspells fails a test, rather than showing nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update({one: getattr(figures, one) for one in figures.__all__})
    own: dict[str, Any] = {
        "shell": shlex.quote,
        "counted": counted,
        "label": label_of,
        "filter_label": label_of_filter,
        "condition": condition_on,
        "shown_as": shown_as,
        "figure_in": figure_in,
    }
    made.filters.update(own)
    known: dict[str, Any] = {
        "periods": PERIODS,
        "units": CALENDAR_UNITS[:4],
        "dimensions": DIMENSIONS,
        "who_names": WHO,
        "zones": _ZONES,
    }
    known |= {"navigation": _NAVIGATION, "measures": MEASURES, "forms": FORMS}
    known |= {"scope_fields": SCOPE_FIELDS, "origins": ORIGINS, "accounts": ACCOUNTS, "with_page": WITH_PAGE}
    made.globals.update(known)
    return made


def prepare() -> None:
    """Compile every template, so that the first viewer does not wait for it."""
    made = _environment()
    for name in made.list_templates():
        made.get_template(name)


def zone_of(request: Request, fixed: str | None) -> str:
    """The time zone of a page that names none: what the server was told, else the browser's, else UTC."""
    if fixed is not None:
        return fixed
    told = request.cookies.get(ZONE, "UTC")
    try:
        zone(told)
    except ConfigurationError:
        told = "UTC"
    request.scope[ZONE] = told
    return told


def page(request: Request, template: str, *, status: int = 200, title: str, **context: Any) -> HTMLResponse:
    """A page from a template.

    Args:
        request: For links and for which page is current.
        template: Name of its file.
        status: HTTP status.
        title: Its heading.
        **context: Names the template uses; ``state`` makes it a live page, with ``holds`` also for calls on their way.
    """
    access: Access = request.scope.get(ACCESS) or Access()
    refused: Refused | None = request.scope.get(REFUSED)
    known = {
        "state": None,
        "holds": False,
        "view": None,
        "door": False,
        "back": "/",
        "away": False,
        "refused": refused,
        "browser_zone": request.scope.get(ZONE),
        "proof": request.scope.get(PAGE_PROOF, ""),
        "viewer": access.name,
        "sees_part": bool(access.scope.conditions),
        "can": access.can if PAGE_PROOF in request.scope else frozenset[Right](),
        **context,
    }
    text = (
        _environment().get_template(template).render(base=base_of(request), path=path_of(request), title=title, **known)
    )
    return HTMLResponse(text, status_code=status if refused is None else refused.status)


def missing(request: Request, title: str, message: str) -> HTMLResponse:
    """The page that says that there is no such thing."""
    return page(request, "error.html", status=404, title=title, message=message)


class Part(NamedTuple, Generic[T]):
    """Some of a long list: which, as the page's number from 1, and whether there are more."""

    items: Sequence[T]
    number: int
    more: bool


def part_of(request: Request, items: Sequence[T]) -> Part[T]:
    """The part of `items` that the URL asks for.

    Raises:
        ConfigurationError: not a page number.
    """
    asked = request.query_params.get("page", "1")
    if not re.fullmatch(r"[1-9]\d{0,8}", asked):
        raise ConfigurationError(f"page= is a number from 1, not {asked[:64]!r}.")
    first = (int(asked) - 1) * _ON_A_PAGE
    return Part(items[first : first + _ON_A_PAGE], int(asked), len(items) > first + _ON_A_PAGE)
