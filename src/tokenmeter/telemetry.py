"""What the ledger records, told to OpenTelemetry or Prometheus as it happens. Optional; off unless configured.

The ledger stays the truth: metrics are sums for dashboards and alerts, in floating point. They carry no member, route,
end user or tag unless those are allowed by name (``metrics_labels``), since every value makes a time series of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary, ref

from tokenmeter.budgets import Balance
from tokenmeter.call import ActiveSpan
from tokenmeter.dimensions import COUNTED_AS, WHO
from tokenmeter.errors import ConfigurationError
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.ledger import Entry
from tokenmeter.money import EXACT, ZERO, add
from tokenmeter.processes import make_lock
from tokenmeter.providers.hosts import host_of
from tokenmeter.texts import suggest
from tokenmeter.usage import Usage
from tokenmeter.values import dataclass

log = logging.getLogger("tokenmeter")

#: What an entry can be labelled with besides the tags: those of its account, and some of its own.
_LABELS = (*WHO, "api_key", "endpoint", "service_tier", "status")
_TAG = "tag:"
# Bucket boundaries that OpenTelemetry's conventions advise.
_TOKENS = [4**power for power in range(14)]
_SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]


class MeteredState(Protocol):
    """What gauges are read from: a meter."""

    faults: int
    closed: bool

    def remaining(self) -> list[Balance]:
        """Where every counter of every budget stands."""
        ...

    def flush(self, timeout: int = ...) -> int:
        """How many entries wait on this host after `timeout` seconds."""
        ...

    def fault(self, where: str, error: BaseException) -> None:
        """Count and log a fault of ours."""
        ...


class Metrics(Protocol):
    """A destination of metrics: an observer of entries that also watches the meter."""

    def __call__(self, entry: Entry) -> None:
        """Count one entry."""
        ...

    def watch(self, meter: MeteredState) -> None:
        """Read the gauges from `meter` from now on, whenever they are asked for."""
        ...


def make_metrics(kind: Literal["opentelemetry", "prometheus"], labels: Sequence[str] = ()) -> Metrics:
    """Metrics of one kind.

    Raises:
        ConfigurationError: an unknown label, or the extra is not installed.
    """
    return PrometheusMetrics(labels) if kind == "prometheus" else OpenTelemetryMetrics(labels)


def parse_labels(names: Iterable[str]) -> tuple[str, ...]:
    """`names`, checked, each once.

    Raises:
        ConfigurationError: a name is none of the dimensions that an entry can be labelled with.
    """
    found = tuple(dict.fromkeys(names))
    for name in found:
        tag = name.removeprefix(_TAG) if name.startswith(_TAG) else None
        if name not in _LABELS and not (tag and tag.isidentifier() and tag.isascii()):
            raise ConfigurationError(
                f"metrics_labels: {name!r} is no label; allowed are {', '.join(_LABELS)} and tag:NAME, whose NAME is "
                f"made of letters, digits and underscores.{suggest(name, _LABELS)}"
            )
    return found


def _label_of(entry: Entry, name: str) -> str | None:
    if name.startswith(_TAG):
        return entry.attribution.tags.get(name.removeprefix(_TAG))
    if name == "api_key":
        return None if entry.api_key is None else entry.api_key.label
    value: str | None = getattr(entry.attribution if name in WHO else entry, name)
    return value


class _Owed:
    """What was taken back of counters. They only rise: it is kept off what they would rise by next."""

    def __init__(self) -> None:
        self._lock = make_lock()
        self._owed: dict[tuple[str, ...], Decimal | int] = {}

    def rise(self, key: tuple[str, ...], amount: Decimal | int) -> float:
        """By how much a counter rises for `amount`, which is negative where something is taken back; never below 0."""
        if amount > 0 and key not in self._owed:
            return float(amount)
        with self._lock:
            left = add(amount, self._owed.pop(key, 0))
            if left < 0:
                self._owed[key] = left
        return float(left) if left > 0 else 0.0


def _owed_by(entry: Entry, labels: Sequence[str]) -> tuple[str, ...]:
    """Which counters stand for each other: an answer's status is another than that of the estimate it replaces."""
    own = (_label_of(entry, name) or "" for name in labels if name != "status")
    return (entry.provider, entry.model or "", entry.operation, *own)


class _Watching:
    """The meter that the gauges of one destination are read from: the last one, which is not kept alive."""

    def __init__(self) -> None:
        self._meter: Callable[[], MeteredState | None] = lambda: None

    def watch(self, meter: MeteredState) -> None:
        """Read from `meter` from now on."""
        self._meter = ref(meter)

    def read(self, what: str, gauge: Callable[[MeteredState], Iterable[tuple[float, Any]]]) -> list[tuple[float, Any]]:
        """The values of a gauge; none while they cannot be read."""
        meter = self._meter()
        if meter is None or meter.closed:
            return []
        try:
            return list(gauge(meter))
        except Exception as error:  # noqa: BLE001 - whoever collects must get the rest
            meter.fault(f"read the gauge of {what}", error)
            return []


def _state_of(destination: Any, make: Callable[[], Any]) -> Any:
    """What was made for a provider or registry before: each takes a name once, and a meter may be made anew."""
    found = getattr(destination, "_tokenmeter", None)
    if found is None:
        found = destination._tokenmeter = make()  # noqa: SLF001 - our mark on it
    return found


def _faults(meter: MeteredState) -> Iterable[tuple[float, tuple[()]]]:
    return [(meter.faults, ())]


def _waiting(meter: MeteredState) -> Iterable[tuple[float, tuple[()]]]:
    return [(meter.flush(0), ())]


def _fullest(meter: MeteredState, labels: Sequence[str]) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], float]:
    """How full each budget is, 1 = full: by budget and the labels that are allowed; the fullest of those beneath."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for balance in meter.remaining():
        if not (balance.limit_known and balance.limit.is_finite()):
            continue
        scope = tuple((name, value) for name, value in balance.scope.items() if name in labels)
        used = EXACT.add(balance.spent, balance.reserved)
        # A limit of 0 is full from the beginning.
        part = float(EXACT.divide(used, balance.limit)) if balance.limit else 1.0
        key = (balance.budget, scope)
        found[key] = max(part, found.get(key, 0.0))
    return found


class OpenTelemetryMetrics:
    """Metrics of the application's own OpenTelemetry meter provider, by the GenAI semantic conventions.

    Instruments: ``gen_ai.client.token.usage`` ({token}, histogram, by ``gen_ai.token.type``),
    ``gen_ai.client.operation.duration`` (s, histogram), ``tokenmeter.client.cost`` (USD, counter of billed cost),
    ``tokenmeter.client.unpriced`` ({entry}, counter), and the gauges ``tokenmeter.budget.used`` (1, of which part
    is used and held), ``tokenmeter.faults`` ({fault}) and ``tokenmeter.entries.waiting`` ({entry}).

    Args:
        labels: Dimensions to label with, as attributes ``tokenmeter.team``, ``tokenmeter.tag.NAME``, ...
        provider: A meter provider; None = the global one.

    Raises:
        ConfigurationError: an unknown label, or opentelemetry-api is not installed.
    """

    def __init__(self, labels: Sequence[str] = (), provider: Any = None) -> None:
        self._labels = parse_labels(labels)
        self._owed = _Owed()
        try:
            from opentelemetry.metrics import get_meter, get_meter_provider  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError("Metrics need an extra: pip install 'tokenmeter-sdk[otel]'") from error
        self._provider: Any = provider or get_meter_provider()
        meter = self._meter = get_meter("tokenmeter", meter_provider=provider)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._cost = meter.create_counter(
            "tokenmeter.client.cost", unit="USD", description="Billed cost; an approximation of the ledger's exact sum"
        )
        self._unpriced = meter.create_counter(
            "tokenmeter.client.unpriced", unit="{entry}", description="Entries with a meter of unknown price"
        )

    def __call__(self, entry: Entry) -> None:
        """Record one entry. Corrections and adjustments are no operations and are left out."""
        if entry.kind not in COUNTED_AS:
            return
        labels, owed = self._attributes(entry), _owed_by(entry, self._labels)
        for kind, tokens in (("input", entry.usage.input_tokens), ("output", entry.usage.output_tokens)):
            if more := self._owed.rise((kind, *owed), tokens):
                self._tokens.record(int(more), {**labels, "gen_ai.token.type": kind})
        if entry.latency_us is not None:
            error = {"error.type": entry.error_type} if entry.error_type else {}
            self._duration.record(entry.latency_us / 1_000_000, {**labels, **error})
        if cost := self._owed.rise(("cost", *owed), entry.billed_cost or ZERO):
            self._cost.add(cost, labels)
        if entry.cost_source == "unpriced" and self._owed.rise(("unpriced", *owed), COUNTED_AS[entry.kind]):
            self._unpriced.add(1, labels)

    def watch(self, meter: MeteredState) -> None:
        """Read the gauges from `meter` whenever they are collected."""
        _state_of(self._provider, self._make_gauges).watch(meter)

    def _make_gauges(self) -> _Watching:
        from opentelemetry.metrics import Observation  # noqa: PLC0415 - an extra

        watching = _Watching()

        def make(
            name: str, unit: str, description: str, gauge: Callable[[MeteredState], Iterable[tuple[float, Any]]]
        ) -> None:
            def observe(_: object) -> list[Any]:
                return [Observation(value, dict(attributes)) for value, attributes in watching.read(name, gauge)]

            self._meter.create_observable_gauge(name, [observe], unit=unit, description=description)

        def budgets(meter: MeteredState) -> Iterator[tuple[float, Iterable[tuple[str, str]]]]:
            for (budget, scope), used in _fullest(meter, self._labels).items():
                yield used, [("tokenmeter.budget", budget), *((_attribute(name), value) for name, value in scope)]

        make("tokenmeter.budget.used", "1", "Part of a budget that is used or held; 1 is full", budgets)
        make("tokenmeter.faults", "{fault}", "Faults inside tokenmeter in this process", _faults)
        make("tokenmeter.entries.waiting", "{entry}", "Entries that only this host has so far", _waiting)
        return watching

    def _attributes(self, entry: Entry) -> dict[str, str]:
        found = {
            "gen_ai.operation.name": entry.operation,
            "gen_ai.provider.name": host_of(entry.provider).otel or entry.provider,
            "gen_ai.request.model": entry.request_model,
            "gen_ai.response.model": entry.response_model,
            **{_attribute(name): _label_of(entry, name) for name in self._labels},
        }
        # Left out rather than empty, as the conventions have it.
        return {name: value for name, value in found.items() if value}


def _attribute(label: str) -> str:
    return f"tokenmeter.{label.replace(':', '.')}"


class PrometheusMetrics:
    """Metrics for `prometheus_client`, for those without a collector.

    ``tokenmeter_calls_total``, ``tokenmeter_tokens_total`` (by ``type``), ``tokenmeter_cost_usd_total``,
    ``tokenmeter_unpriced_total`` and ``tokenmeter_call_seconds`` (histogram), each by ``provider``, ``model``,
    ``operation`` and the allowed labels (a colon in ``tag:NAME`` becomes an underscore); and the gauges
    ``tokenmeter_budget_used_ratio`` (by ``budget``), ``tokenmeter_faults`` and ``tokenmeter_entries_waiting``.

    Args:
        labels: Dimensions to label with.
        registry: A registry; None = the default one.

    Raises:
        ConfigurationError: an unknown label, or prometheus-client is not installed.
    """

    def __init__(self, labels: Sequence[str] = (), registry: Any = None) -> None:
        self._labels = parse_labels(labels)
        try:
            import prometheus_client as prometheus  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError("Prometheus needs an extra: pip install 'tokenmeter-sdk[prometheus]'") from error
        into: Any = prometheus.REGISTRY if registry is None else registry
        self._made: _Made = _state_of(into, lambda: _Made(prometheus, into, self._labels))
        # A registry takes each name once: with other labels all of ours goes, and is made anew.
        if self._made.labels != self._labels:
            into.unregister(self._made.gauges)
            for instrument in self._made.instruments:
                into.unregister(instrument)
            self._made = into._tokenmeter = _Made(prometheus, into, self._labels)  # noqa: SLF001 - our mark on it

    def __call__(self, entry: Entry) -> None:
        """Count one entry. Corrections and adjustments are no calls and are left out."""
        if entry.kind not in COUNTED_AS:
            return
        calls, tokens, cost, unpriced, seconds = self._made.instruments
        common = (entry.provider, entry.model or "", entry.operation)
        labels = (*common, *(_label_of(entry, name) or "" for name in self._labels))
        owed, rise = _owed_by(entry, self._labels), self._made.owed.rise
        if entry.requests and rise(("calls", *owed), entry.requests):
            calls.labels(*labels, entry.status).inc()
        for kind, number in (("input", entry.usage.input_tokens), ("output", entry.usage.output_tokens)):
            if more := rise((kind, *owed), number):
                tokens.labels(*labels, kind).inc(more)
        if dollars := rise(("cost", *owed), entry.billed_cost or ZERO):
            cost.labels(*labels).inc(dollars)
        if entry.cost_source == "unpriced" and rise(("unpriced", *owed), COUNTED_AS[entry.kind]):
            unpriced.labels(*labels).inc()
        if entry.latency_us is not None:
            seconds.labels(*labels).observe(entry.latency_us / 1_000_000)

    def watch(self, meter: MeteredState) -> None:
        """Read the gauges from `meter` whenever they are scraped."""
        self._made.gauges.watching.watch(meter)


class _Made:
    """What a Prometheus registry holds of ours."""

    def __init__(self, prometheus: Any, registry: Any, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.owed = _Owed()
        by = ("provider", "model", "operation", *map(_prometheus_name, labels))
        self.instruments = (
            prometheus.Counter("tokenmeter_calls", "Calls", (*by, "status"), registry=registry),
            prometheus.Counter("tokenmeter_tokens", "Tokens used", (*by, "type"), registry=registry),
            prometheus.Counter("tokenmeter_cost_usd", "Billed cost, US dollars (approximate)", by, registry=registry),
            prometheus.Counter("tokenmeter_unpriced", "Entries with a meter of unknown price", by, registry=registry),
            prometheus.Histogram(
                "tokenmeter_call_seconds", "Seconds a call took", by, registry=registry, buckets=_SECONDS
            ),
        )
        self.gauges = _Gauges(self.labels)
        registry.register(self.gauges)


def _prometheus_name(label: str) -> str:
    return label.replace(":", "_")


class _Gauges:
    """A collector for `prometheus_client`: reads a meter when it is scraped."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.watching = _Watching()
        self._labels = labels

    def describe(self) -> list[Any]:
        """Nothing is known before it is read."""
        return []

    def collect(self) -> Iterator[Any]:
        """The gauges, as they are now."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - an extra

        names = ("budget", *map(_prometheus_name, self._labels))
        for name, told, labels, gauge in (
            ("budget_used_ratio", "Part of a budget that is used or held; 1 is full", names, self._budgets),
            ("faults", "Faults inside tokenmeter in this process", (), _faults),
            ("entries_waiting", "Entries that only this host has so far", (), _waiting),
        ):
            family = GaugeMetricFamily(f"tokenmeter_{name}", told, labels=labels)
            for value, key in self.watching.read(name, gauge):
                family.add_metric(key, value)
            yield family

    def _budgets(self, meter: MeteredState) -> Iterator[tuple[float, tuple[str, ...]]]:
        for (budget, scope), used in _fullest(meter, self._labels).items():
            values = dict(scope)
            yield used, (budget, *(values.get(name, "") for name in self._labels))


# -- traces


class Spans:
    """Cost and tokens on the spans that calls are made in: ``tokenmeter.*`` attributes, summed over a span's calls.

    Attributes of other instrumentations are left alone.

    Raises:
        ConfigurationError: opentelemetry-api is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.trace import get_current_span  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError("Traces need an extra: pip install 'tokenmeter-sdk[otel]'") from error
        self._current_span: Callable[[], Any] = get_current_span
        self._lock = make_lock()
        self._sums: WeakKeyDictionary[Any, _Sum] = WeakKeyDictionary()
        self._told = False

    def current(self) -> ActiveSpan | None:
        """The span that is active here; None when there is none."""
        try:
            span = self._current_span()
            here = span.get_span_context()
            return ActiveSpan(span, f"{here.trace_id:032x}", f"{here.span_id:016x}") if here.is_valid else None
        except Exception as error:  # a tracer of somebody's; the call is recorded all the same
            let_interrupt_through(error)
            if not self._told:
                self._told = True
                log.warning("The active span cannot be read; calls are recorded without their trace.", exc_info=error)
            return None

    def tell(self, active: ActiveSpan, entry: Entry) -> None:
        """Add an entry to what the span says; one that has ended, or is not sampled, takes nothing."""
        span = active.span
        if not span.is_recording():
            return
        with self._lock:
            # Calls of one span may end at the same time.
            told = self._sums[span] = self._sums.get(span, _Sum()).plus(entry)
        span.set_attributes(told.attributes())


@dataclass(frozen=True, slots=True)
class _Sum:
    """What the calls of one span came to."""

    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    list_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO
    unpriced: int = 0
    entry_ids: tuple[str, ...] = ()

    def plus(self, entry: Entry) -> _Sum:
        # What takes an estimate back takes back what it counted.
        sign = -1 if entry.requests < 0 else 1
        return _Sum(
            self.calls + entry.requests,
            self.usage + entry.usage,
            EXACT.add(self.list_cost, entry.list_cost or ZERO),
            EXACT.add(self.billed_cost, entry.billed_cost or ZERO),
            self.unpriced + sign * (entry.cost_source == "unpriced"),
            (*self.entry_ids, entry.entry_id)[-_MOST_IDS:],
        )

    def attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "tokenmeter.calls": self.calls,
            "tokenmeter.input_tokens": self.usage.input_tokens,
            "tokenmeter.output_tokens": self.usage.output_tokens,
            "tokenmeter.list_cost": float(self.list_cost),
            "tokenmeter.billed_cost": float(self.billed_cost),
            "tokenmeter.entry_ids": self.entry_ids,
        }
        return {**found, "tokenmeter.unpriced": self.unpriced} if self.unpriced else found


#: Entries that a span names at most: the last ones.
_MOST_IDS = 32
