"""Name the tests of an SDK's suite that pass with the plain clients and not with ours.

    python tests/sdk_suites/compare.py plain.json classes.json wrapped.json

Each file is what `suite_plugin` left behind. Exits with 1 when there is such a test that `KNOWN` does not explain.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

_UNASKED = "simulates a host that sends a usage chunk which nobody asked for, in the form of the one that we hide"
#: Whose clients, and which test file -> why its tests may end otherwise.
KNOWN = {
    ("classes", "tests/test_module_client.py"): (
        "wants the client behind `openai.chat` to be of the class that has been put under the SDK's names, but it is "
        "of the SDK's own, and `tokenmeter.wrap(openai)` meters it"
    ),
    ("classes", "tests/lib/chat/test_stream_moderation.py"): _UNASKED,
    ("wrapped", "tests/lib/chat/test_stream_moderation.py"): _UNASKED,
    ("wrapped", "tests/lib/test_client_copy.py"): (
        "compares every attribute of a copy with the original's, and each wrapped client has hooks of its own"
    ),
}


def unexplained(clients: str, plain: dict[str, str], ours: dict[str, str]) -> Iterator[str]:
    """Tests that passed with the plain clients only, without those that `KNOWN` explains."""
    for test, outcome in sorted(plain.items()):
        if outcome == "passed" and ours.get(test) != "passed" and (clients, test.partition("::")[0]) not in KNOWN:
            yield f"{ours.get(test, 'not run')}: {test}"


def main(plain: str, *others: str) -> int:
    """Write the differences to standard output; the exit code."""
    outcomes = {file: json.loads(Path(file).read_text(encoding="utf-8")) for file in (plain, *others)}
    differences = {file: list(unexplained(Path(file).stem, outcomes[plain], outcomes[file])) for file in others}
    lines = [f"{file}: {[*found.values()].count('passed')} passed of {len(found)}" for file, found in outcomes.items()]
    lines += [f"  {file}: {difference}" for file, found in differences.items() for difference in found]
    lines += [f"  {clients}, {file} does not count: it {reason}." for (clients, file), reason in KNOWN.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(differences.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
