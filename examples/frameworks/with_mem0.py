# /// script
# requires-python = ">=3.11"
# dependencies = ["mem0ai>=2.0,<3", "tokenmeter-sdk[openai]"]
#
# [tool.uv.sources]
# tokenmeter-sdk = { path = "../..", editable = true }
# ///
"""Mem0, metered: what it costs to remember, and to recall."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from stage import stage

import tokenmeter


def main(home: Path) -> None:
    """Remember something about two people, and ask for it."""
    os.environ["MEM0_DIR"] = str(home)
    os.environ["MEM0_TELEMETRY"] = "False"
    from mem0 import Memory  # noqa: PLC0415 - it reads the environment when it is imported

    with stage() as provider:
        store = {"provider": "qdrant", "config": {"path": str(home / "vectors")}}
        memory = Memory.from_config({"vector_store": store})
        tokenmeter.wrap(memory.llm.client)
        tokenmeter.wrap(memory.embedding_model.client)

        for member, fact in (("ada", "Ada lives in London"), ("grace", "Grace lives in New York")):
            extracted = json.dumps({"memory": [{"id": "0", "text": fact}]})
            provider.answer(extracted, path="*/chat/completions")
            with tokenmeter.attribute(member=member, route="/remember") as scope:
                memory.add(f"{fact}.", user_id=member)
            print(f"Remembering took {scope.requests} calls, ${scope.list_cost:f}")

        with tokenmeter.attribute(member="ada", route="/recall"):
            found = memory.search("Ada lives in London", filters={"user_id": "ada"})
        print([each["memory"] for each in found["results"]])
        memory.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
