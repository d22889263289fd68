"""Write docs/reference/coverage.md from what the capture suite saw on each SDK version.

    python tests/capture/write_coverage.py docs/reference/coverage.md run-1.json run-2.json ...

Each run file is what ``TOKENMETER_COVERAGE=run-1.json pytest tests/capture`` leaves behind; oldest SDK first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from google_methods import METHODS

_BECOMES = {
    "an entry": "each call is an entry",
    "begins": "begins work that is recorded when it is read",
    "read": "recorded once, when it shows a bill",
    "unknown": "each call is an entry",
    "free": "free",
}
_BEDROCK = """
## Amazon Bedrock

Calls of `AnthropicBedrock`, `AnthropicBedrockMantle`, `BedrockOpenAI` and `OpenAI(provider=...)` are recorded
as the same calls of Anthropic's and OpenAI's own clients are, sync and async, streamed or not. boto3
(`converse`, `invoke_model` and their streams) is not seen: record its answers by `tokenmeter.record()`, which
reads Converse, Claude's, Llama's, Cohere's and Titan's bodies and the last events of their streams. Batches
(`CreateModelInvocationJob`) write to a bucket that nobody reads here. What Bedrock asks by profile and
region, and what of that is assumed or unpriced, stands under [Pricing](pricing.md#shipped-rules).
"""
_METHODS = """
### Every method of google-genai

A test walks the SDK and fails for a method that is not here; `client.aio` has the same.

| method | what becomes of a call |
|---|---|
"""
_WORDS = {"right": "right", "flagged": "flagged", "free": "not billable"}

_HEAD = """\
# What is recorded, call by call

This page is written by the capture tests (`make sdk-matrix`): each call below was made, sync and async, with the plain
SDK and with ours against a local provider that keeps its own books.

- **right**: the recorded quantities equal the provider's books.
- **flagged**: the answer does not say what it used, so the entry holds an estimate, or says that the usage is unknown
  (`estimated`, `usage_unknown`). Never a silent zero.
- **not billable**: the call is free, and makes no entry.
- **-**: this SDK version has no such call.

In every case the caller got the same result, and the provider the same request, as with the plain SDK; the one
difference is `stream_options.include_usage` on chat and completion streams, described in
[How a call is seen](../explanation/capture.md).

"""


def main(target: str, *files: str) -> None:
    """Merge the runs into one table per SDK."""
    runs = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    text = _HEAD + "\n".join(_table(sdk, runs) for sdk in ("openai", "anthropic", "google")) + methods() + _BEDROCK
    Path(target).write_text(text, encoding="utf-8")


def _table(sdk: str, runs: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(
        shape.split("|")[0] for run in reversed(runs) for shape in run["shapes"] if shape.startswith(f"{sdk} ")
    )
    versions = [run["versions"][sdk] for run in runs]
    lines = [
        f"## {sdk}",
        "",
        f"| call | {' | '.join(f'{sdk} {version}' for version in versions)} |",
        f"|---|{'---|' * len(runs)}",
    ]
    lines += [
        f"| {name.removeprefix(sdk).strip()} | {' | '.join(_cell(run['shapes'], name) for run in runs)} |"
        for name in sorted(names)
    ]
    return "\n".join(lines) + "\n"


def methods() -> str:
    """Every method of Google's SDK, and what becomes of a call of it."""
    rows = [
        f"| `{name}` | {_BECOMES[method.becomes]}{f'; {method.why}' if method.why else ''} |"
        for name, method in sorted(METHODS.items())
        if method.becomes != "free" or method.why
    ]
    free = ", ".join(f"`{name}`" for name, method in sorted(METHODS.items()) if method.becomes == "free")
    return _METHODS + "\n".join(rows) + f"\n\nFree, and no entry: {free}.\n"


def _cell(shapes: dict[str, str], name: str) -> str:
    kinds = {kind: shapes.get(f"{name}|{kind}") for kind in ("sync", "async")}
    found = {outcome for outcome in kinds.values() if outcome}
    if not found:
        return "-"
    if len(found) == 1 and all(kinds.values()):
        return _WORDS[found.pop()]
    return ", ".join(f"{kind}: {_WORDS[outcome]}" for kind, outcome in kinds.items() if outcome)


if __name__ == "__main__":
    main(*sys.argv[1:])
