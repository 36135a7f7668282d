"""What the package declares is what it uses: dependencies, version, hooks of the site."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import fsspec
import pytest

from proof_of_learning._version import __version__
from proof_of_learning.errors import UsageError
from proof_of_learning.proof import remote

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "proof_of_learning"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITH_REPORT = {"report/svg.py", "report/figures.py", "report/noise.py"}  # what is imported only to draw
OF_EXTRAS = {"attestation/beacon.py": "beacon"}
KERNELS = PACKAGE / "numeric" / "portable" / "cuda"  # loaded only where PyTorch for CUDA has brought triton
# What these packages are built of, or called by in a program.
WITHIN = {"markupsafe": "jinja2", "click": "typer", "rfc3161_client": "rfc3161-client", "py_ecc": "py-ecc"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!]", requirement)[0].lower() for requirement in requirements}


@functools.cache
def foreign(path: Path) -> frozenset[str]:
    """The packages of others that a file imports, wherever in it."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return frozenset(found - sys.stdlib_module_names - {"proof_of_learning"})


def undeclared(path: Path) -> set[str]:
    """What a file imports that is declared neither for all nor for where it stands."""
    declared = names(PROJECT["dependencies"])
    if path.is_relative_to(PACKAGE) and str(path.relative_to(PACKAGE)) in WITH_REPORT:
        declared |= names(PROJECT["optional-dependencies"]["report"])
    if path.is_relative_to(PACKAGE) and (extra := OF_EXTRAS.get(str(path.relative_to(PACKAGE)))):
        declared |= names(PROJECT["optional-dependencies"][extra])
    if path.parent in (PACKAGE / "integrations", PACKAGE / "distributed"):  # each has an extra that its name ends with
        declared |= names(PROJECT["optional-dependencies"].get(path.stem.rpartition("_")[2], []))
    if path.parent == KERNELS:
        declared.add("triton")
    return {WITHIN.get(name, name) for name in foreign(path)} - declared


def test_what_is_imported_is_declared() -> None:
    paths = [*PACKAGE.rglob("*.py"), ROOT / "examples" / "digits.py"]
    assert len(paths) > 300 and {path: missing for path in paths if (missing := undeclared(path))} == {}


def test_what_is_declared_is_imported() -> None:
    used = {WITHIN.get(name, name) for path in PACKAGE.rglob("*.py") for name in foreign(path)}
    assert names(PROJECT["dependencies"]) <= used


def test_the_tested_set_holds_every_direct_dependency() -> None:
    pinned = names((ROOT / "constraints.txt").read_text().splitlines()[1:])
    extras = PROJECT["optional-dependencies"].values()
    direct = names([*PROJECT["dependencies"], *(item for extra in extras for item in extra)]) - {"proof-of-learning"}
    assert direct <= pinned


# A script that is recorded is told at once what ends its recording: nobody else is there to tell it.
SPEAK = ("cli", "run/record.py")


def prints(path: Path) -> bool:
    text = path.read_text()
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)] if "print" in text else []
    return any(isinstance(name, ast.Name) and name.id == "print" for name in calls)


def test_only_the_command_prints() -> None:
    speaking = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if prints(path)}
    assert speaking and {name for name in speaking if not name.startswith(SPEAK)} == set()


def test_the_version_to_cite_is_that_of_the_package() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_site_writes_parameters_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(ROOT / "tools")
    from site_docstrings import markdown

    written = markdown(
        "Do it.\n\nthis: one thing\n    in two lines; see :func:`that`.\nthat: another\nReturns nothing."
    )
    assert written == (
        "Do it.\n\n\n- **`this`**: one thing\n    in two lines; see `that`.\n- **`that`**: another\n\nReturns nothing."
    )


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", "'proof-of-learning[s3]'"), ("gs", "gcsfs"), ("hdfs", "pyarrow"), ("webhdfs", None)]
)
def test_an_address_names_the_package_it_needs(
    scheme: str, package: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(address: str) -> None:
        raise ImportError("install something")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UsageError) as caught:
        remote.fetch(f"{scheme}://bucket/run.pol", Path("nowhere"))
    assert str(caught.value).endswith(f"`pip install {package}`" if package else "install something")
