"""Errors in each provider's own shape."""

from __future__ import annotations

from tokenmeter.testing.context import Provider, RefusalError
from tokenmeter.testing.wire import JSON

__all__ = ["error_body"]

_OPENAI_KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", None),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", None),
}
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(provider: Provider, refusal: RefusalError, *, request_id: str) -> JSON:
    """The body of an error response, as `provider` writes it."""
    if provider == "anthropic":
        kind = refusal.kind or _ANTHROPIC_KINDS.get(refusal.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": request_id}
    kind, code = _OPENAI_KINDS.get(refusal.status, ("invalid_request_error", None))
    error = {
        "message": refusal.message,
        "type": refusal.kind or kind,
        "param": refusal.param,
        "code": refusal.code or code,
    }
    return {"error": error}
