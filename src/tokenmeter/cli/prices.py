"""``prices show``, ``prices diff`` and ``prices update``."""

from __future__ import annotations

import typer

app = typer.Typer(help="The price list.", no_args_is_help=True)
