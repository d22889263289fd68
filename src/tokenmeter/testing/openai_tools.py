"""Hosted tools of the responses API: the output items and the ``tool_usage`` that go with what is billed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tokenmeter.testing.wire import JSON
from tokenmeter.usage import Consumption, Usage

__all__ = ["tool_items", "tool_usage"]


def tool_items(usage: Usage, also: Iterable[Consumption], new_id: Callable[[str], str]) -> list[JSON]:
    """An output item for every search, container and picture that is billed."""
    items: list[JSON] = []
    for _ in range(int(usage["web_searches"])):
        action = {"type": "search", "query": "fake", "queries": ["fake"]}
        items.append({"id": new_id("ws_"), "type": "web_search_call", "status": "completed", "action": action})
    for _ in range(int(usage["file_searches"])):
        item = {"id": new_id("fs_"), "type": "file_search_call", "status": "completed", "queries": ["fake"]}
        items.append({**item, "results": None})
    for _ in range(int(usage["container_sessions"])):
        item = {"id": new_id("ci_"), "type": "code_interpreter_call", "status": "completed", "code": "1"}
        items.append({**item, "container_id": new_id("cntr_"), "outputs": None})
    drawn = sum(part.role == "image_generation" for part in also)
    picture = {"type": "image_generation_call", "status": "completed", "result": ""}
    items += [{"id": new_id("ig_"), **picture} for _ in range(drawn)]
    return items


def tool_usage(usage: Usage, also: Iterable[Consumption]) -> JSON | None:
    """``response.tool_usage``; None when no hosted tool was billed there."""
    searches = int(usage["web_searches"])
    pictures = Usage.total(part.usage for part in also if part.role == "image_generation")
    if not searches and not pictures:
        return None
    drawn = {
        "input_tokens": pictures.input_tokens,
        "input_tokens_details": {
            "image_tokens": int(pictures["input_image"]),
            "text_tokens": int(pictures["input"]),
        },
        "output_tokens": pictures.output_tokens,
        "output_tokens_details": {
            "image_tokens": int(pictures["output_image"]),
            "text_tokens": int(pictures["output"]),
        },
        "total_tokens": pictures.total_tokens,
    }
    return {"image_gen": drawn, "web_search": {"num_requests": searches}}
