"""Name the tests of an SDK's suite that pass with the plain clients and not with ours.

    python tests/sdk_suites/compare.py plain.json classes.json wrapped.json

Each file is what `suite_plugin` left behind. Exits with 1 when there is such a test that `KNOWN` does not explain.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
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


def lost(plain: dict[str, str], ours: dict[str, str]) -> Iterator[str]:
    """Tests that passed with the plain clients only."""
    return (test for test, outcome in sorted(plain.items()) if outcome == "passed" and ours.get(test) != "passed")


def compare(clients: str, plain: dict[str, str], ours: dict[str, str]) -> tuple[list[str], Counter[str]]:
    """The tests lost that nothing explains, each with how it ended; and how many of each file `KNOWN` explains."""
    explained = {file for whose, file in KNOWN if whose == clients}
    files = Counter(test.partition("::")[0] for test in lost(plain, ours))
    others = [test for test in lost(plain, ours) if test.partition("::")[0] not in explained]
    return (
        [f"{ours.get(test, 'not run')}: {test}" for test in others],
        Counter({file: files[file] for file in explained & files.keys()}),
    )


def main(plain: str, *others: str) -> int:
    """Write the differences to standard output; the exit code."""
    outcomes = {file: json.loads(Path(file).read_text(encoding="utf-8")) for file in (plain, *others)}
    lines = [f"{file}: {[*found.values()].count('passed')} passed of {len(found)}" for file, found in outcomes.items()]
    unexplained = 0
    for file in others:
        clients = Path(file).stem
        differences, explained = compare(clients, outcomes[plain], outcomes[file])
        unexplained += len(differences)
        lines += [f"  {file}: {difference}" for difference in differences]
        lines += [
            f"  {file}: {count} of {suite} do not count: it {KNOWN[clients, suite]}."
            for suite, count in sorted(explained.items())
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
