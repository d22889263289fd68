"""What a provider's wire format must supply: pure readers from decoded JSON to an `Observation`. No SDK is imported.

A live call and `tokenmeter.price()` go through the same readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenmeter.call import RequestFacts
from tokenmeter.usage import Observation

__all__ = ["Dialect", "Endpoint", "Form", "StreamReader"]

Form = Literal["one", "lines", "items"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of a provider's API, named by its SDK method path.

    Attributes:
        path: SDK method path (``chat.completions``, ``responses``, ``messages.batches``, ...); for a URL that no SDK
            method has, the URL's own path, so that nothing goes unseen.
        operation: OpenTelemetry ``gen_ai.operation.name``.
        billable: False for endpoints that are free (``count_tokens``, ``models``): they make no entry.
        polls: True for a GET whose body may repeat a bill (background responses, batch results): recorded once by
            response id. Other GETs make no entry.
        starts: True for a free call that starts work which is billed when it is read (batches, agent sessions): who
            made it is remembered.
        form: Whether an answer holds ``one`` bill, or many: the ``lines`` of a results file, or the ``items`` of a
            page or of a stream of events.
        known: False when no reader is known for it; a usage object found in its body is still recorded, flagged.
        subject: The id in the URL: of the batch, file or session that is asked about; None when it names none.
    """

    path: str
    operation: str
    billable: bool = True
    polls: bool = False
    starts: bool = False
    form: Form = "one"
    known: bool = True
    subject: str | None = None

    @property
    def asks(self) -> bool:
        """Whether a call makes a new bill, so that a budget is to be asked first."""
        return self.billable and not self.polls


class StreamReader(Protocol):
    """Reads the events of one stream. Usage events replace, they never add."""

    @property
    def terminal(self) -> bool:
        """Whether the event that ends the answer has been seen (its usage, if any, is final)."""
        ...

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take one decoded event, in order. Must be cheap and must not keep the event alive."""
        ...

    def observation(self) -> Observation:
        """What is known now. Before `terminal` (or without usage) the missing part is estimated, flag ``estimated``."""
        ...


class Dialect(Protocol):
    """The wire format of one provider family."""

    name: str

    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path (with or without ``/v1``, base path or query)."""
        ...

    def request_facts(self, endpoint: Endpoint, body: Mapping[str, Any] | None) -> RequestFacts:
        """The facts of a request body; `body` is the dict the SDK is about to serialise (or None)."""
        ...

    def read(self, body: Any, *, provider: str, endpoint: str, request: RequestFacts) -> Observation:
        """Usage of a whole decoded body. A body without usage gives an Observation without consumptions.

        Args:
            body: The decoded JSON, a bare usage object, or text for endpoints that answer in text.
            provider: Provider id, since compatible hosts differ in detail.
            endpoint: `Endpoint.path`.
            request: Facts of the request; defaults where the caller only has the body.
        """
        ...

    def stream(self, *, provider: str, endpoint: str, request: RequestFacts) -> StreamReader:
        """A fresh reader for one stream."""
        ...
