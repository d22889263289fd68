"""The verbs of `tokenmeter.Meter` as functions, on the default meter or on ``meter=``, each made at its first use.

Those that read or write a ledger are there for event loops, too: each waits in a thread, so that the loop goes on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from tokenmeter.api import Meter, drop_first
from tokenmeter.default import default_keeper, default_meter, default_prices, default_recorder
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.meter import Meter as CallMeter
from tokenmeter.patience import in_thread
from tokenmeter.places import hand_place

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: Entries that are read from the ledger at a time.
_PAGE = 500


class _Verb(Protocol[P, R_co]):
    """A method of `Meter` as a function: on the default meter, or on ``meter=``."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Any, meter: Meter | None, **kwargs: Any) -> R_co: ...


def _on_default(
    method: Callable[Concatenate[Any, P], R_co], meter_of: Callable[[], Any] = default_meter
) -> _Verb[P, R_co]:

    @functools.wraps(method)
    def function(*args: Any, meter: Meter | None = None, **kwargs: Any) -> Any:
        if meter is None:
            meter = meter_of()
        elif not isinstance(meter, CallMeter):  # pyright: ignore[reportUnnecessaryIsInstance] - who has no type checker
            raise ConfigurationError(f"meter must be a Meter, as configure() returns it, not {shown(meter)}.")
        return method(meter, *args, **kwargs)

    signature, told = drop_first(method)
    own = inspect.Parameter("meter", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Meter | None")
    parameters = list(signature.parameters.values())
    open_ended = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    # Nothing may stand behind ``**fields``.
    parameters.insert(len(parameters) - open_ended, own)
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__doc__ = f"{told}\n\nOn the default meter, or on `meter`."
    function.__module__ = "tokenmeter"
    return cast("_Verb[P, R_co]", function)


def _in_thread(verb: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    async def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return await in_thread(functools.partial(hand_place(verb), *args, **kwargs))

    _name_after(verb, function, "in a thread")
    return function


def _in_pages(verb: Callable[P, Iterator[R]]) -> Callable[P, AsyncIterator[R]]:
    async def function(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        # One thread from the beginning to the end: the reading belongs to the thread that began it.
        with ThreadPoolExecutor(1, thread_name_prefix=f"tokenmeter-{verb.__name__}") as reader:
            found = await in_thread(reader.submit(verb, *args, **kwargs).result)
            try:
                while page := await in_thread(reader.submit(lambda: list(islice(found, _PAGE))).result):
                    for one in page:
                        yield one
            finally:
                close = getattr(found, "close", None)
                if close is not None:
                    reader.submit(close)

    _name_after(verb, function, "read in a thread a page at a time")
    signature = inspect.signature(verb)
    shown = signature.replace(return_annotation=f"Async{signature.return_annotation}")
    function.__signature__ = shown  # type: ignore[attr-defined]
    return function


def _name_after(verb: Callable[..., Any], function: Any, how: str) -> None:
    name = f"a{verb.__name__}"
    told = f"As `tokenmeter.{verb.__name__}`, {how}, so that the event loop goes on."
    functools.update_wrapper(function, verb, assigned=("__annotations__",))
    function.__name__, function.__qualname__, function.__module__, function.__doc__ = name, name, "tokenmeter", told


if TYPE_CHECKING:
    age_balances = _on_default(Meter.age_balances)
    archive = _on_default(Meter.archive)
    archives = _on_default(Meter.archives)
    backup = _on_default(Meter.backup)
    checkpoint = _on_default(Meter.checkpoint)
    close_period = _on_default(Meter.close_period)
    credit_invoice = _on_default(Meter.credit_invoice)
    database = _on_default(Meter.database)
    draft_invoices = _on_default(Meter.draft_invoices)
    duckdb = _on_default(Meter.duckdb)
    entries = _on_default(Meter.entries)
    erase = _on_default(Meter.erase)
    estimate = _on_default(Meter.estimate)
    export_charges = _on_default(Meter.export_charges)
    export_entries = _on_default(Meter.export_entries)
    export_focus = _on_default(Meter.export_focus)
    export_journal = _on_default(Meter.export_journal)
    file_reconciliation = _on_default(Meter.file_reconciliation)
    find_invoice = _on_default(Meter.find_invoice)
    flush = _on_default(Meter.flush)
    hand_over = _on_default(Meter.hand_over)
    hold = _on_default(Meter.hold)
    import_usage = _on_default(Meter.import_usage)
    invoice = _on_default(Meter.invoice)
    invoice_coverage = _on_default(Meter.invoice_coverage)
    issue_invoice = _on_default(Meter.issue_invoice)
    issue_invoices = _on_default(Meter.issue_invoices)
    post_proposals = _on_default(Meter.post_proposals)
    preview_invoices = _on_default(Meter.preview_invoices)
    price = _on_default(Meter.price)
    raise_budget = _on_default(Meter.raise_budget)
    reconcile = _on_default(Meter.reconcile)
    record = _on_default(Meter.record)
    record_payment = _on_default(Meter.record_payment)
    remaining = _on_default(Meter.remaining)
    report = _on_default(Meter.report)
    reprice = _on_default(Meter.reprice)
    move_archive = _on_default(Meter.move_archive)
    restore_archive = _on_default(Meter.restore_archive)
    statement = _on_default(Meter.statement)
    sweep = _on_default(Meter.sweep)
    verify = _on_default(Meter.verify)
    void_invoice = _on_default(Meter.void_invoice)
    write_off_invoice = _on_default(Meter.write_off_invoice)

    aentries = _in_pages(entries)
    aflush = _in_thread(flush)
    arecord = _in_thread(record)
    aremaining = _in_thread(remaining)
    areport = _in_thread(report)
    averify = _in_thread(verify)


#: Verb -> whose it is where no meter is named; of every other one, the default meter's.
_METER_OF: dict[str, Callable[[], Any]] = {
    "price": default_prices,
    "estimate": default_prices,
    "record": default_recorder,
    "flush": default_keeper,
    "hold": default_recorder,
}
#: Verb for event loops -> what makes it of the other one.
_FOR_LOOPS: dict[str, Callable[[Any], Any]] = {
    "aentries": _in_pages,
    **dict.fromkeys(("aflush", "arecord", "aremaining", "areport", "averify"), _in_thread),
}


if not TYPE_CHECKING:  # as in `tokenmeter` itself

    def __getattr__(name: str) -> Any:
        if name in _FOR_LOOPS:
            plain = globals().get(name[1:]) or __getattr__(name[1:])
            globals()[name] = _FOR_LOOPS[name](plain)
            return globals()[name]
        if name.startswith("_") or not callable(method := getattr(Meter, name, None)):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        verb: Any = _on_default(method, _METER_OF.get(name, default_meter))
        verb.__name__ = verb.__qualname__ = name  # `invoice` is made from a function that is called otherwise
        globals()[name] = verb
        return verb
