"""An admin key goes to the host that its client was given, and nowhere else."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenmeter.errors import ReconciliationError
from tokenmeter.reconciliation import reconcile

KEY = "sk-admin-of-one-address"


@pytest.fixture
def hosts():
    """Two servers: one that sends everybody on to the other, which notes what it is sent."""
    taken = []
    servers = []

    def serve(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append((server, threading.Thread(target=server.serve_forever)))
        servers[-1][1].start()
        return server.server_address[1]

    def take(handler):
        taken.append(str(handler.headers))
        body = b'{"data": [], "has_more": false, "next_page": null}'
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    there = f"http://localhost:{serve(take)}"

    def send_on(handler):
        handler.send_response(307)
        handler.send_header("location", there + handler.path)
        handler.send_header("content-length", "0")
        handler.end_headers()

    yield f"http://127.0.0.1:{serve(send_on)}", there, taken
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def make_client(name, url):
    sdk = pytest.importorskip(name)
    if name == "openai":
        return sdk.OpenAI(base_url=url, api_key="sk-plain", admin_api_key=KEY)
    return sdk.Anthropic(base_url=url, api_key=KEY)


@pytest.mark.parametrize(("name", "reports"), [("openai", None), ("anthropic", "classic"), ("anthropic", None)])
def test_a_key_is_not_sent_on_to_another_host(meter, hosts, tmp_path, name, reports):
    here, there, taken = hosts
    kept = tmp_path / "pages"
    with (
        make_client(name, here) as client,
        pytest.raises(ReconciliationError, match=r"sends .* on to .*base_url") as told,
    ):
        reconcile(meter.store, provider=name, period="2026-10", source=client, reports=reports, resume=kept)
    assert there.rpartition(":")[0] in str(told.value)
    assert taken == []
    assert not kept.exists()


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_reports_where_the_client_was_sent_to_are_read(meter, hosts, name):
    _, there, taken = hosts
    with make_client(name, there) as client:
        assert reconcile(meter.store, provider=name, period="2026-10", source=client).theirs.tokens == 0
    assert taken
    assert all(KEY in one for one in taken)
