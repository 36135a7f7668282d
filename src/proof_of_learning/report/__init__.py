"""What people read: a verdict on the terminal, and as one self-contained HTML page. Both only render the value.

Names are imported on first use: a verdict on the terminal does not wait for matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proof_of_learning.report.html import render_html, write_html
    from proof_of_learning.report.terminal import print_verdict, summary_table

_HOMES = {"print_verdict": "terminal", "render_html": "html", "summary_table": "terminal", "write_html": "html"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["print_verdict", "render_html", "summary_table", "write_html"]
