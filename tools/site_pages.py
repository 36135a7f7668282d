"""A hook of the documentation site: pages that lie outside ``docs/`` take part, and links lead where they lead in the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = "docs/"
INDEX = "index.md"
OUTSIDE = {"README.md": INDEX} | {
    name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")
}  # fmt: skip
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`(?!\]))", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages from outside."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Let every relative link lead to the page of the file it names; what has no page here becomes its text."""
    place = page.file.src_uri
    source = next((name for name, shown in OUTSIDE.items() if shown == place), DOCS + place)

    def rewritten(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, anchor, fragment = target.partition("#")
        if "://" in target or not path:
            return match[0]
        named = os.path.normpath(os.path.join(os.path.dirname(source), path))
        shown = OUTSIDE.get(named, named.removeprefix(DOCS))
        if files.get_file_from_path(shown) is None or (named not in OUTSIDE and not named.startswith(DOCS)):
            if not (ROOT / named).exists():
                return match[0]  # the build says so
            return f"`{named}`" if text.strip("`/") in (named, os.path.basename(named)) else f"{text} (`{named}`)"
        return f"{mark}[{text}]({os.path.relpath(shown, os.path.dirname(place))}{anchor}{fragment})"

    parts = _CODE.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(rewritten, part) for number, part in enumerate(parts))
