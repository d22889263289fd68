"""``python -m tokenmeter`` and the ``tokenmeter`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends in `SystemExit` with one of the documented exit codes.

    Args:
        arguments: As on the command line; None = the process's own.
    """
    try:
        from tokenmeter.cli.app import run  # noqa: PLC0415 - typer and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer"}:
            raise
        print("The command line needs an extra: pip install 'tokenmeter-sdk[cli]'", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:  # from here on typer says so
        sys.exit(130)
    run(arguments)


if __name__ == "__main__":
    main()
