"""The command line: ``tokenmeter`` or ``python -m tokenmeter``. Needs the extra ``cli``."""
