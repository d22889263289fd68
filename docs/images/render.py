"""Runs the quickstart and draws what it prints, for the README: ``python docs/images/render.py``."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
WIDTH = 116


def main() -> None:
    """Write ``quickstart.svg`` beside this file."""
    run = subprocess.run(  # noqa: S603 - our own example
        [sys.executable, "-W", "ignore", HERE.parent.parent / "examples" / "quickstart.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    output = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:40123", run.stdout)  # the same picture each time
    for line in output.rstrip().splitlines():
        heading = line.startswith("Usage and cost")
        stop = "was stopped" in line
        console.print(Text(line, style="bold" if heading or line.startswith("total") else "red" if stop else ""))
    picture = console.export_svg(title="examples/quickstart.py")
    # The fonts would be fetched from elsewhere: the reader's own monospace will do.
    picture = re.sub(r"@font-face\s*\{.*?\}", "", picture, flags=re.DOTALL)
    (HERE / "quickstart.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
