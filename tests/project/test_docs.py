"""What the documents say is so: examples run, commands parse, links lead somewhere, floors hold."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import typer

import proof_of_learning as pol
from proof_of_learning.cli.main import app

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "proof_of_learning"
README = (ROOT / "README.md").read_text()
GUIDES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "guide").glob("*.md"))}
DOCUMENTS = [
    path for path in ROOT.rglob("*.md") if not {part for part in path.relative_to(ROOT).parts if part[0] == "."}
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# ---- the examples -----------------------------------------------------------------------------------


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of README, then those of the guides, which build on them, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    whole = "\n".join(block for text in (README, *GUIDES.values()) for block in blocks(text, "python"))
    assert whole.count("steps=1000") == 1
    scope: dict[str, object] = {"__name__": "readme"}
    exec(compile(whole.replace("steps=1000", "steps=40"), "README.md", "exec"), scope)
    assert capsys.readouterr().out.startswith("valid - every mandatory check passed\n")
    observed = pol.verify("observed.pol", scope["task"], random=4)  # type: ignore[arg-type]
    assert (observed.verdict, observed.assurance) == ("valid", "observed")


def test_the_front_page_is_short() -> None:
    assert len(README.split()) < 1000


# ---- the commands -----------------------------------------------------------------------------------

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command(name: str) -> Any:
    found = COMMANDS.get(name)
    assert found is not None, f"a document names the command {name!r}, which does not exist"
    return found


def options(of: Any) -> set[str]:
    return {option for parameter in of.params for option in (*parameter.opts, *parameter.secondary_opts)}


def written_commands() -> list[str]:
    whole = "\n".join([README, *GUIDES.values()])
    lines = [line.split("#")[0].split(">")[0].strip() for block in blocks(whole, "sh") for line in block.splitlines()]
    inline = re.findall(r"`(pol [a-z][^`]*)`", whole)
    return [line for line in (*lines, *inline) if line.startswith("pol ")]


@pytest.mark.parametrize("line", written_commands())
def test_every_command_line_parses(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    with command(name).make_context(name, arguments, resilient_parsing=not arguments):
        pass


TABLE = re.findall(r"^\| `pol ([a-z-]+)[^|]*` \|.*\|(.*)\|$", GUIDES["commands"], re.MULTILINE)


def test_the_table_of_commands_is_complete() -> None:
    assert sorted(name for name, _ in TABLE) == sorted(COMMANDS)


@pytest.mark.parametrize(("name", "listed"), TABLE, ids=[name for name, _ in TABLE])
def test_the_options_in_the_table_exist(name: str, listed: str) -> None:
    named = set(re.findall(r"`(-[a-z-]+)`", listed))
    assert named
    assert named <= options(command(name)), named - options(command(name))


# ---- the links --------------------------------------------------------------------------------------


@functools.cache
def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as the usual sites make them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[str, str]]:
    for document in sorted(DOCUMENTS):
        text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`(?!\])", "", text)):
            if "://" not in target:
                yield str(document.relative_to(ROOT)), target


def leads(document: str, target: str) -> bool:
    name, _, anchor = target.partition("#")
    place = (ROOT / document).parent / name if name else ROOT / document
    return place.exists() and (not anchor or anchor in anchors(place))


@pytest.mark.quick
def test_relative_links_lead_somewhere() -> None:
    found = list(links())
    assert len(found) > 100 and [link for link in found if not leads(*link)] == []


# ---- the floors -------------------------------------------------------------------------------------


def floors() -> list[list[str]]:
    """From the top down, as CONTRIBUTING lists them."""
    found = re.search(r"<!-- floors -->\n```\n(.*?)```\n", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert found is not None
    return [line.split() for line in found.group(1).splitlines()]


FLOORS = {name: height for height, names in enumerate(reversed(floors())) for name in names}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def floor(module: str) -> int | None:
    """The floor of the longest beginning of the module's name that CONTRIBUTING lists; None for a mere folder."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in FLOORS:
            return FLOORS[".".join(parts[:end])]
    return None


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    """The modules of the package that a module imports when it runs, those of the public names included."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    aliases = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "proof_of_learning":
            base = (node.module or "").removeprefix("proof_of_learning").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}" if base else alias.name
                yield full if full in MODULES else base or public(alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "proof_of_learning":
                    aliases.add(alias.asname or alias.name)
                elif alias.name.startswith("proof_of_learning."):
                    yield alias.name.removeprefix("proof_of_learning.")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id in aliases and not node.attr.startswith("__"):
            yield public(node.attr)


def public(name: str) -> str:
    """The module behind a public name of the package."""
    return pol._HOMES.get(name, name)


@pytest.mark.quick
def test_every_module_stands_on_a_floor() -> None:
    homeless = [name for name, path in MODULES.items() if floor(name) is None and path.stat().st_size]
    assert not homeless, f"give these a floor in CONTRIBUTING.md: {homeless}"


@pytest.mark.quick
def test_lower_floors_never_import_upper_ones() -> None:
    risen = [
        f"{module} imports {imported}, which stands above it"
        for module, path in MODULES.items()
        for imported in imports(path)
        if (own := floor(module)) is not None and (other := floor(imported)) is not None and other > own
    ]
    assert not risen, "\n".join(risen)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        name: {found for found in imports(path) if found in MODULES and found != name} for name, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())
