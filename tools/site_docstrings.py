"""Shows this project's docstrings on the documentation site: a line ``name: meaning`` becomes an entry of a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_PARAMETER = re.compile(r"(\w+(?:, \w+)*): (.*)")
_ROLE = re.compile(r":(?:func|class|mod|meth|attr):`~?([^`]+)`")


class OneLineParameters(Extension):
    """Rewrites each docstring as Markdown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """The docstring with its parameters as a list, and with no markup that only Sphinx knows."""
    lines: list[str] = []
    listed = False
    for line in _ROLE.sub(r"`\1`", docstring).splitlines():
        found = _PARAMETER.fullmatch(line)
        if found:
            lines += [""] * (not listed) + [f"- **`{found[1]}`**: {found[2]}"]
        elif listed and line and not line.startswith(" "):
            lines += ["", line]
        else:
            lines.append(line)
        listed = bool(found) or (listed and line.startswith(" "))
    return "\n".join(lines)
