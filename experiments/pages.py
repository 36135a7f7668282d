"""Write the pages of evidence again from the committed results: nothing is computed, nothing of this machine goes into them.

`python experiments/pages.py [NAME …] [--data FOLDER] [--output FOLDER]` (default: all that have results, in docs/evidence). Pages are
the same bytes wherever they are written; pictures depend on matplotlib's version, and are left out with `--no-pictures`.
`--shorten` first writes lists of segments in the attack matrix's results as ranges.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byzantine
import cells
import few_bits
import honest
import matrix_page
import other_environments
import paper_page
import private_replay
import selection
from attack_matrix import NONCES, shortened

EVIDENCE = cells.HERE.parent / "docs" / "evidence"
Document = dict[str, Any]


def _honest(found: Document, output: Path, pictures: bool) -> None:
    cells.write_page(output / "honest.md", honest.page(found["runs"], found["seed"]))


def _byzantine(found: Document, output: Path, pictures: bool) -> None:
    byzantine.write_pages(found["cells"], found["planned"], output, pictures)


def _few_bits(found: Document, output: Path, pictures: bool) -> None:
    cells.write_page(output / "few-bits.md", few_bits.page(found["runs"]))


def _selection(found: Document, output: Path, pictures: bool) -> None:
    cells.write_page(output / "selection.md", selection.page(found["cells"]))


def _other_environments(found: Document, output: Path, pictures: bool) -> None:
    cells.write_page(output / "other-environments.md", other_environments.page(found["runs"], len(found["runs"])))


def _attack_matrix(found: Document, output: Path, pictures: bool) -> None:
    told = {name: {"rows": [], "not_applicable": why} for name, why in found["not_applicable"].items()}
    told |= {name: {"rows": [], "error": why} for name, why in found["errors"].items()}
    matrix = matrix_page.Matrix(
        {"": {"rows": found["rows"]}, **told}, NONCES, found["quick"], list(found["checks"]), found.get("missing", ())
    )
    matrix_page.write_page(matrix, output, pictures)


def _private_replay(found: Document, output: Path, pictures: bool) -> None:
    page = private_replay.page(found["cells"], found["seed"], found["real_data"])
    cells.write_page(output / "private-replay.md", page)


def _paper(found: Document, output: Path, pictures: bool) -> None:
    scale = found["scale"]
    findings = paper_page.Findings(scale["name"], scale, found["real_data"], found["seed"], found["cells"])
    paper_page.write_page(findings, output, pictures)


PAGES: dict[str, Callable[[Document, Path, bool], None]] = {
    "attack-matrix": _attack_matrix, "byzantine": _byzantine, "few-bits": _few_bits, "honest": _honest,
    "other-environments": _other_environments, "paper": _paper, "private-replay": _private_replay, "selection": _selection,
}  # fmt: skip


def write(name: str, data: Path, output: Path, pictures: bool = True) -> None:
    """Write one page into ``output``, from its results in ``data``."""
    found = json.loads((data / f"{name}.json").read_text())
    with cells.measured_on(found["machine"], found["versions"]):
        PAGES[name](found, output, pictures)


def main(arguments: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PAGES)}")
    made.add_argument("--data", type=Path, default=EVIDENCE / "data", help="folder with the results")
    made.add_argument("--output", type=Path, default=EVIDENCE, help="folder for the pages")
    made.add_argument("--no-pictures", action="store_true", help="write no pictures")
    made.add_argument("--shorten", action="store_true", help="write the attack matrix's lists of segments as ranges")
    options = made.parse_args(arguments)
    unknown = [name for name in options.names if name not in PAGES]
    if unknown:
        made.error(f"there is no page {unknown[0]!r}; known: {', '.join(PAGES)}")
    matrix = options.data / "attack-matrix.json"
    if options.shorten and matrix.is_file():
        found = json.loads(matrix.read_text())
        found["rows"] = [shortened(row) for row in found["rows"]]
        matrix.write_text(cells.as_text(found))
    for name in options.names or PAGES:
        if options.names or (options.data / f"{name}.json").is_file():
            write(name, options.data, options.output, not options.no_pictures)


if __name__ == "__main__":
    main()
