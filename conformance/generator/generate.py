"""Makes the conformance suite: ``python conformance/generator/generate.py`` writes ``conformance/v2``.

The same bytes everywhere, for nothing is trained and all signatures are deterministic. The keys are for tests alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import claims
import contents
import documents
import heads
import logs
import openings
import samples
import signed
import stamps
import values
from suite import Suite, read

HOME = Path(__file__).parents[1] / "v2"


def make() -> Suite:
    suite = Suite()
    for part in (values, documents, logs, contents, signed, stamps, claims, samples, openings, heads):
        part.cases(suite)
    return suite


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is there, and write nothing")
    options = parser.parse_args()
    suite = make()
    if options.check:
        made, there = suite.tree(), read(HOME)
        differing = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
        print(f"{len(suite.cases)} cases, {len(differing)} files differ", *differing[:20], sep="\n")
        return 1 if differing else 0
    suite.write(HOME)
    passing = sum(not case.status for case in suite.cases.values())
    size = sum(map(len, suite.tree().values()))
    print(f"{passing} cases that pass, {len(suite.cases) - passing} that fail, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
