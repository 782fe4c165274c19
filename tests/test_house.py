"""The rules of the house that a machine can check: layers, public names, quiet imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import limbert

SOURCE = Path(limbert.__file__).parent
LAYERS = {"errors": 0, "client": 1, "core": 1, "model": 2, "method": 3, "data": 3, "run": 4, "app": 5, "recipes": 1}


def imports_of(path: Path) -> set[str]:
    """Names of the limbert modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("limbert.")}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_its_own_layer_or_above(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part.startswith("__"):
        return
    for name in imports_of(path):
        other = name.split(".")[1]
        assert LAYERS[other] <= LAYERS[part], f"{path.name} imports {name}"
        assert {part, other} != {"method", "data"}, f"{path.name} imports {name}"


def test_core_is_standard_library_only() -> None:
    for path in (SOURCE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] in {*sys.stdlib_module_names, "limbert"}, path.name


def test_public_names_are_what_they_say() -> None:
    for name in limbert.__all__:
        value = getattr(limbert, name)
        assert value.__name__ == name
        assert value.__doc__
    assert {*limbert.__all__} <= {*dir(limbert)}
    with pytest.raises(AttributeError, match="no attribute 'Elastic'"):
        limbert.Elastic  # noqa: B018


def test_every_file_says_why_it_exists() -> None:
    for path in SOURCE.rglob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, path


def test_importing_loads_nothing_else() -> None:
    code = "import sys; before = {*sys.modules}; import limbert; print(sorted({*sys.modules} - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy", "typer"} & set(ast.literal_eval(loaded))


def test_the_library_does_not_print() -> None:
    for path in SOURCE.rglob("*.py"):
        if "cli" in path.parts:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path
