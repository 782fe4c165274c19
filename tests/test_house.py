"""Structure of the package: import order, import circles, file names, public names, fast imports."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import limbert

SOURCE = Path(limbert.__file__).parent
LAYERS = (
    ("errors", "deprecation"),
    ("files", "client"),
    ("core",),
    ("model", "data"),
    ("method",),
    ("inference",),
    ("evaluation", "augment"),
    ("export", "serve"),
    ("train",),
    ("report",),
    ("cli",),
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(SOURCE.rglob("*.py"))
# Base names of several files, with their one common meaning. A file in cli/ may be named after the file it calls.
SHARED_NAMES = {
    "load": "reads from disk what its folder works on",
    "metrics": "numbers about predictions (data) or requests (serve)",
    "errors": "the exceptions of the package, or of the server",
    "ray": "runs on Ray what its folder does",
}


def module_of(path: Path) -> str:
    return ".".join(("limbert", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Names of the limbert modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & {module_of(path) for path in FILES}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part.startswith("__"):
        return
    upward = [
        name for name in imports_of(path) if (other := part_of(name)) not in ("", part) and LAYER[other] >= LAYER[part]
    ]
    assert not upward, f"{module_of(path)} must not import {', '.join(upward)}: same or higher layer, cut that import"


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {module_of(path): imports_of(path) for path in FILES if path.name != "__init__.py"}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            circle = [*trail[trail.index(module) :], module]
            pytest.fail("circle: " + " -> ".join(circle) + "; cut one of these imports")
        if module not in done:
            for other in arrows.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


def test_a_base_name_has_one_meaning() -> None:
    homes = defaultdict(list)
    for path in FILES:
        homes[path.stem].append(path.relative_to(SOURCE))
    for name, paths in homes.items():
        outside = [path for path in paths if path.parts[0] != "cli"]
        if not name.startswith("__") and name not in SHARED_NAMES:
            assert len(outside) <= 1, f"{name}.py has several meanings: {', '.join(map(str, outside))}"


def test_no_folder_holds_more_than_a_fifth() -> None:
    lines = defaultdict(int)
    for path in FILES:
        lines[path.relative_to(SOURCE).parts[0]] += path.read_text(encoding="utf-8").count("\n")
    largest = max(lines, key=lambda part: lines[part])
    assert lines[largest] <= sum(lines.values()) / 5, f"{largest} holds {lines[largest]} lines"


def test_every_file_has_a_docstring() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_core_is_standard_library_only() -> None:
    for path in (SOURCE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] in {*sys.stdlib_module_names, "limbert"}, path.name


def test_public_names_are_what_they_say() -> None:
    for name in limbert.__all__:
        value = getattr(limbert, name)
        assert value.__name__.rpartition(".")[2] == name
        assert value.__doc__
    assert {*limbert.__all__} <= {*dir(limbert)}
    with pytest.raises(AttributeError, match="no attribute 'Elastic'"):
        limbert.Elastic  # noqa: B018


def test_importing_loads_nothing_else() -> None:
    code = "import sys; before = {*sys.modules}; import limbert; print(sorted({*sys.modules} - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy", "typer"} & set(ast.literal_eval(loaded))
