"""The dashboard: web pages over the ledger, served locally or mounted in your own server.

Needs the extra ``dashboard``.
"""

from tokenmeter.errors import ConfigurationError

try:
    from tokenmeter.dashboard.asgi import app
    from tokenmeter.dashboard.server import serve
except ModuleNotFoundError as error:
    needed = {"fastapi", "h11", "jinja2", "markupsafe", "prometheus_client", "starlette", "uvicorn"}
    if error.name is None or error.name.partition(".")[0] not in needed:
        raise
    raise ConfigurationError(
        f"The dashboard needs the extra 'dashboard': pip install 'tokenmeter-sdk[dashboard]'. ({error})"
    ) from error

__all__ = ["app", "serve"]
