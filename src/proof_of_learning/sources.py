"""What a task is made of beyond its description: source text, the local modules that it imports, and values that it closes over.

A description says which optimizer steps which parameters; what the loss pulls towards is in the program alone. Digests here
are of bytes. Nothing is executed: imports are read from the source text and looked up where Python would look.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import inspect
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from proof_of_learning import canonical

UNAVAILABLE = "unavailable"
MODULE, VALUES, ROOT = "module:", "values", "task"
MAX_MODULES, MAX_BYTES, MAX_DEPTH = 1000, 16 << 20, 8
_OWN = "proof_of_learning"
_INSTALLED = ("site-packages", "dist-packages")


def digest(description: str, sources: Mapping[str, str]) -> str | None:
    """One digest over a task's description (by its digest) and all its sources.

    None where there is nothing to hold another task against: a source is unavailable, or modules were not recorded.
    """
    if UNAVAILABLE in sources.values() or not any(name.startswith(MODULE) for name in sources):
        return None
    return canonical.sha256(b"pol/v1/sources\0", canonical.encode({"task": description, "sources": dict(sources)}))


def changed(claimed: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """The names whose sources are not known to be the same. What is unavailable equals nothing.

    A proof without modules was recorded before there were any: then the functions alone are compared.
    """
    names = set(claimed) | set(own)
    if not any(name.startswith(MODULE) for name in claimed):
        names = {name for name in names if not name.startswith(MODULE) and name != VALUES}
    return sorted(
        name for name in names if claimed.get(name) != own.get(name) or own.get(name, UNAVAILABLE) == UNAVAILABLE
    )


def of_function(function: Any) -> str:
    """The digest of a function's or a class's source text, of what a partial calls, of an object's class; or ``unavailable``."""
    try:
        return canonical.sha256(inspect.getsource(_plain_function(function)).encode())
    except (OSError, TypeError):
        return UNAVAILABLE


def of_modules(functions: Iterable[Any], root: ModuleType | None = None) -> dict[str, str]:
    """``{"module:NAME": sha256 of the file}`` for the modules that the functions come from and the local ones those import.

    See :func:`_module_texts` for the names.
    """
    texts = _module_texts(functions, root)
    return {MODULE + name: UNAVAILABLE if raw is None else canonical.sha256(raw) for name, (raw, _) in texts.items()}


def decisive(
    functions: Iterable[Any], aside: Any, keyword: str, root: ModuleType | None = None, entry: str | None = None
) -> dict[str, str]:
    """:func:`of_modules` by meaning (syntax trees, not texts), without the function ``aside``, the argument ``keyword`` of ``Task``
    that names it, and the definitions and imports that nothing but these mentions.

    ``entry``: the function by which all is entered; with it, functions that nothing mentions at all are left out, too.
    """
    place = _place(aside)
    texts = _module_texts(functions, root).items()
    own = None if place is None else place[1:]
    return dict(
        _decisive(
            tuple((name, raw, own if place and place[0] == path else None) for name, (raw, path) in texts),
            keyword,
            entry,
        )
    )


@functools.lru_cache(maxsize=16)  # each session that is described asks for the same texts
def _decisive(
    texts: tuple[tuple[str, bytes | None, tuple[str, int] | None], ...], keyword: str, entry: str | None
) -> tuple[tuple[str, str], ...]:
    """:func:`decisive` of texts under their names, each with the name and first line of the definition in it that is left out."""
    trees: dict[str, ast.Module] = {}
    found: dict[str, str] = {}
    dropped: list[ast.AST] = []
    for name, raw, aside in texts:
        found[MODULE + name] = UNAVAILABLE if raw is None else canonical.sha256(raw)
        if raw is not None and (tree := _parsed(raw)) is not None:
            trees[name] = tree
            dropped += [node for node in ast.walk(tree) if _is_definition(node, aside)]
            for call in ast.walk(tree):
                if isinstance(call, ast.Call) and _last_name(call.func) == "Task":
                    dropped += [k for k in call.keywords if k.arg == keyword]
    whole = list(trees.values())
    for node in dropped:
        _cut(whole, node)
    wanted = {name for node in dropped for name in _mentions(node)}
    dynamic = any(name in _DYNAMIC for tree in whole for name in _mentions(tree))
    while unused := _unused(whole, wanted, None if dynamic else entry):
        for node in unused:
            _cut(whole, node)
            wanted.update(_mentions(node))
    for name, tree in trees.items():
        found[MODULE + name] = canonical.sha256(ast.dump(tree).encode())
    return tuple(found.items())


def _module_texts(functions: Iterable[Any], root: ModuleType | None) -> dict[str, tuple[bytes | None, Path | None]]:
    """By name, the source texts (None: unavailable) and files of the modules of ``functions`` and of the local ones those import.

    ``root`` is the module that the task was loaded from; it is called ``task``, however it was loaded, and so is the only home
    of all functions where there is no root. Local is what belongs neither to Python nor to an installed package.
    """
    modules = [sys.modules.get(str(getattr(_plain_function(f), "__module__", ""))) for f in functions]
    homes = list(
        dict.fromkeys(m for m in modules if m is not None and m is not root and _foreign(m.__name__, _file(m)))
    )
    lonely = root is None and len(homes) == 1
    queue: list[tuple[str, str, Path | None]] = [] if root is None else [(ROOT, root.__name__, _file(root))]
    for module in homes:
        named = lonely or module.__name__.startswith("pol_task_")
        queue.append((ROOT if named else _name(module), module.__name__, _file(module)))
    found, seen = dict[str, tuple[bytes | None, Path | None]](), set[str]()
    while queue:
        label, name, path = queue.pop(0)
        key = str(path)
        if label in found or (path is not None and key in seen):
            continue
        seen.add(key)
        raw = None if path is None or len(found) >= MAX_MODULES else _read(path)
        found[label] = raw, path
        if len(found) > MAX_MODULES:
            break
        if raw is not None and path is not None and path.suffix == ".py":
            package = path.name == "__init__.py"
            queue += [(imported, imported, where) for imported, where in _local_imports(raw, name, package)]
    return found


def of_values(functions: Mapping[str, Any]) -> str:
    """The digest of the plain values (numbers, truth values, short texts without a path) that functions close over or default to."""
    return canonical.sha256(canonical.encode({name: list(_values(f, 0)) for name, f in functions.items()}))


def _plain_function(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def _name(module: ModuleType) -> str:
    path = _file(module)
    return path.stem if module.__name__ == "__main__" and path is not None else module.__name__


def _file(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    return None if name is None else Path(name).resolve()


def _foreign(name: str, path: Path | None) -> bool:
    """Whether a module is neither Python's, nor an installed package's, nor ours."""
    if name.split(".")[0] == _OWN or name in sys.builtin_module_names:
        return False
    if path is None:
        return name == "__main__"
    if any(part in _INSTALLED for part in path.parts):
        return False
    return not any(path.is_relative_to(home) for home in _library())


@functools.cache
def _library() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib"))


def _read(path: Path) -> bytes | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _parsed(raw: bytes) -> ast.Module | None:
    try:
        return ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


# By these, a definition is reached that nothing mentions.
_DYNAMIC = {
    "globals",
    "locals",
    "vars",
    "getattr",
    "eval",
    "exec",
    "import_module",
    "__import__",
    "__dict__",
    "modules",
}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _place(function: Any) -> tuple[Path, str, int] | None:
    """The file, the name and the first line of what defines ``function`` (or, of an object, its class); None where none is known."""
    plain = _plain_function(function)
    try:
        return Path(inspect.getfile(plain)).resolve(), plain.__name__, inspect.getsourcelines(plain)[1]
    except (OSError, TypeError):
        return None


def _is_definition(node: ast.AST, place: tuple[str, int] | None) -> bool:
    """Whether ``node`` defines what has this name and first line."""
    if place is None or not isinstance(node, _DEFINITIONS):
        return False
    return place == (node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]))


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _mentions(node: ast.AST) -> Iterator[str]:
    """Every name that may lead to a definition: variables, attributes, imported names, parts of texts."""
    for below in ast.walk(node):
        if isinstance(below, (ast.Name, ast.Attribute)):
            yield _last_name(below)
        elif isinstance(below, ast.alias):
            yield from below.name.split(".")
        elif isinstance(below, ast.Constant) and isinstance(below.value, str):
            yield from re.findall(r"\w+", below.value)


def _unused(trees: list[ast.Module], wanted: set[str], entry: str | None) -> list[ast.AST]:
    """The definitions and imports of names in ``wanted`` that nothing mentions but they themselves; with ``entry``, undecorated
    functions of any other name, too.
    """
    total = Counter(name for tree in trees for name in _mentions(tree))
    found: list[ast.AST] = []
    nodes = [node for tree in trees for node in ast.walk(tree)]
    # A method may be called by whoever knows its class's base.
    methods = {id(below) for node in nodes if isinstance(node, ast.ClassDef) for below in node.body}
    for node in nodes:
        name = node.name if isinstance(node, _DEFINITIONS) and id(node) not in methods else None
        if isinstance(node, ast.alias):
            name = node.asname or node.name.split(".")[0]
        free = entry is not None and name != entry and isinstance(node, ast.FunctionDef) and not node.decorator_list
        if name is not None and (name in wanted or free) and total[name] == Counter(_mentions(node))[name]:
            found.append(node)
    return found


def _cut(trees: list[ast.Module], gone: ast.AST) -> None:
    """Take one node out of whichever list of the trees holds it; an import of nothing goes with its last name."""
    for holder in (node for tree in trees for node in ast.walk(tree)):
        for _, items in ast.iter_fields(holder):
            if isinstance(items, list) and any(item is gone for item in items):
                items[:] = [item for item in items if item is not gone]
                if isinstance(holder, (ast.Import, ast.ImportFrom)) and not items:
                    _cut(trees, holder)
                return


def _local_imports(raw: bytes, name: str, package: bool) -> Iterator[tuple[str, Path]]:
    """Local modules that the source text imports anywhere, packages around them included, by name and file."""
    for wanted in _imports(raw, name if package else name.rpartition(".")[0]):
        parts = wanted.split(".")
        for length in range(1, len(parts) + 1):
            full = ".".join(parts[:length])
            path = _find(full)
            if path is not None and _foreign(full, path):
                yield full, path


@functools.lru_cache(maxsize=256)  # each session that is described asks for the same texts
def _imports(raw: bytes, home: str) -> tuple[str, ...]:
    """All modules that a source text of the package ``home`` imports anywhere; none where it cannot be parsed."""
    tree = _parsed(raw)
    return () if tree is None else tuple(sorted({full for node in ast.walk(tree) for full in _imported(node, home)}))


def _imported(node: ast.AST, home: str) -> Iterator[str]:
    """The modules that one node of a syntax tree imports; of ``from a import b`` both ``a`` and ``a.b``, which may be one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = home.split(".") if node.level else []
        above = above[: len(above) - (node.level - 1)] if node.level > 1 else above
        base = ".".join([*(part for part in above if part), *([node.module] if node.module else [])])
        if base:
            yield base
        yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def _find(name: str) -> Path | None:
    """The file of a module, without importing it; None for what is built in, no module, or a mere folder."""
    module = sys.modules.get(name)
    if module is not None:
        return _file(module)
    where: Any = None
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        try:
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:length]), where)
        except (ImportError, ValueError, OSError):
            return None
        if spec is None:
            return None
        where = spec.submodule_search_locations
        if length < len(parts) and where is None:
            return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin and spec.has_location else None


def _values(function: Any, depth: int) -> Iterator[str]:
    while isinstance(function, functools.partial):
        yield from (
            told for value in (*function.args, *sorted(function.keywords.items())) for told in _told(value, depth)
        )
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None or depth > MAX_DEPTH:
        return
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        yield from (f"{name}={told}" for told in _told(value, depth))
    for value in (*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())):
        yield from _told(value, depth)


def _told(value: Any, depth: int) -> Iterator[str]:
    if value is None or isinstance(value, (bool, int)):
        yield repr(value)
    elif isinstance(value, float):
        yield value.hex()
    elif isinstance(value, str):
        if len(value) <= 256 and os.sep not in value:
            yield f"text {value}"
    elif depth <= MAX_DEPTH and isinstance(value, (list, tuple)) and len(value) <= MAX_MODULES:
        yield f"{len(value)} values"
        for item in value:
            yield from _told(item, depth + 1)
    elif depth <= MAX_DEPTH and isinstance(value, dict) and len(value) <= MAX_MODULES:
        yield f"{len(value)} entries"
        for key, item in value.items():
            yield from _told(key, depth + 1)
            yield from _told(item, depth + 1)
    elif isinstance(value, Callable):  # type: ignore[arg-type]
        yield from _values(value, depth + 1)
