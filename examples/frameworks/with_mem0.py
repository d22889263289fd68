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

home = tempfile.TemporaryDirectory()
os.environ["MEM0_DIR"] = home.name
os.environ["MEM0_TELEMETRY"] = "False"

from mem0 import Memory
from stage import stage

import tokenmeter


def main() -> None:
    """Remember something about two people, and ask for it."""
    with stage() as provider:
        store = {"provider": "qdrant", "config": {"path": str(Path(home.name) / "vectors")}}
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
    with home:
        main()
