"""Files of the repository's root as pages of the documentation: mkdocs calls `on_files`."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {"SECURITY.md": "security.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each page, with links as they are seen from here."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        for root_file, its_page in PAGES.items():
            text = text.replace(f"]({root_file}", f"]({its_page}")
        files.append(File.generated(config, page, content=re.sub(r"\]\((\./)?docs/", "](", text)))
    return files
