"""OpenTelemetry metrics of what the ledger records, by the GenAI semantic conventions. Optional; off unless configured.

The ledger stays the truth: metrics are sums for dashboards and alerts, and carry no member, route or end user.
"""

from __future__ import annotations

from typing import Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry

__all__ = ["EntryMetrics"]

#: OpenTelemetry's ``gen_ai.provider.name`` where it is not our provider id.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "aws": "aws.bedrock",
    "google": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "x-ai": "x_ai",
}
# Bucket boundaries that the conventions advise.
_TOKENS = [4**power for power in range(14)]
_SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]


class EntryMetrics:
    """Records each entry as metrics of the application's own OpenTelemetry meter provider.

    Instruments: ``gen_ai.client.token.usage`` ({token}, histogram, by ``gen_ai.token.type``),
    ``gen_ai.client.operation.duration`` (s, histogram), ``tokenmeter.client.cost`` (USD, counter of billed cost) and
    ``tokenmeter.client.unpriced`` ({entry}, counter).

    Args:
        provider: A meter provider; None = the global one.

    Raises:
        ConfigurationError: opentelemetry-api is not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry.metrics import get_meter  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError("Metrics need an extra: pip install 'tokenmeter-sdk[otel]'") from error
        meter = get_meter("tokenmeter", meter_provider=provider)
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
        if entry.kind != "usage":
            return
        labels = _attributes(entry)
        for kind, tokens in (("input", entry.usage.input_tokens), ("output", entry.usage.output_tokens)):
            if tokens:
                self._tokens.record(tokens, {**labels, "gen_ai.token.type": kind})
        if entry.latency_us is not None:
            error = {"error.type": entry.error_type} if entry.error_type else {}
            self._duration.record(entry.latency_us / 1_000_000, {**labels, **error})
        if entry.billed_cost:
            self._cost.add(float(entry.billed_cost), labels)
        if entry.cost_source == "unpriced":
            self._unpriced.add(1, labels)


def _attributes(entry: Entry) -> dict[str, str]:
    found = {
        "gen_ai.operation.name": entry.operation,
        "gen_ai.provider.name": _PROVIDERS.get(entry.provider, entry.provider),
        "gen_ai.request.model": entry.request_model,
        "gen_ai.response.model": entry.response_model,
    }
    return {name: value for name, value in found.items() if value}
