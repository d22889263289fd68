"""What only a build for publishing knows: where the sources are. Read by hatchling, see `.ci/release`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: A link or a picture of the README that leads into the sources.
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """The README as a package page shows it, and the project's addresses."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in ``readme`` and, where ``REPOSITORY`` says where the sources are, ``urls``."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("REPOSITORY", "").removesuffix("/").removesuffix(".git")
        if repository:
            revision = os.environ.get("REVISION", "main")
            text = _LINK.sub(lambda found: _lead_to(repository, revision, *found.groups()), text)
            text = text.replace("git clone <this repository>", f"git clone {repository}")
            metadata["urls"] = {
                "Source": repository,
                "Documentation": f"{repository}/blob/{revision}/docs/index.md",
                "Changelog": f"{repository}/blob/{revision}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def _lead_to(repository: str, revision: str, picture: str, words: str, path: str) -> str:
    return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/{revision}/{path})"
