"""Name the tests of an SDK's suite that pass with the plain clients and not with ours.

    python tests/sdk_suites/compare.py plain.json classes.json wrapped.json

Each file is what `suite_plugin` left behind. Exits with 1 when there is such a test that `KNOWN` does not explain.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

#: Test file -> why its tests may end otherwise with our clients.
KNOWN = {
    "tests/test_module_client.py": (
        "wants the client behind `openai.chat` to be of the class that has been put under the SDK's names, but it is "
        "of the SDK's own, and `tokenmeter.wrap(openai)` meters it"
    ),
    "tests/lib/chat/test_stream_moderation.py": (
        "simulates a host that sends a usage chunk which nobody asked for, in the form of the one that we hide"
    ),
}


def unexplained(plain: dict[str, str], ours: dict[str, str]) -> Iterator[str]:
    """Tests that passed with the plain clients only, without those that `KNOWN` explains."""
    for test, outcome in sorted(plain.items()):
        if outcome == "passed" and ours.get(test) != "passed" and test.partition("::")[0] not in KNOWN:
            yield f"{ours.get(test, 'not run')}: {test}"


def main(plain: str, *others: str) -> int:
    """Write the differences to standard output; the exit code."""
    outcomes = {file: json.loads(Path(file).read_text(encoding="utf-8")) for file in (plain, *others)}
    differences = {file: list(unexplained(outcomes[plain], outcomes[file])) for file in others}
    lines = [f"{file}: {[*found.values()].count('passed')} passed of {len(found)}" for file, found in outcomes.items()]
    lines += [f"  {file}: {difference}" for file, found in differences.items() for difference in found]
    lines += [f"  {file} does not count: it {reason}." for file, reason in KNOWN.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(differences.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
