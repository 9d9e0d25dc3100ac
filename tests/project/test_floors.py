"""The layout of the package: imports go downwards, files and functions stay small."""

import ast
import pathlib

import pytest
from paths import ROOT

PACKAGE = ROOT / "emu3_jax"

# Rooms are folders or single files of the package.
FLOORS = {
    "exit_codes": 0, "files": 0, "shipped": 0, "vocab": 0, "sharding": 0, "config": 0,
    "command_line": 0, "foreign": 0, "compiling": 0, "provenance": 0, "progress": 0,
    "text": 1, "sequence": 1, "models": 1, "figures": 1,
    "data": 2, "interop": 2,
    "generate": 3, "scorers": 3,
    "train": 4,
    "evaluate": 5,
    "report": 6, "pipeline": 6,
    "tokenize": 7, "preferences": 7, "quickstart": 7, "post_training": 7,
    "convert": 7, "show": 7, "aot": 7, "demo": 7,
}  # fmt: skip
COMMANDS = 7  # every __main__.py, whatever its room

# Imports between rooms of one floor, each with its reason.
NEIGHBOURS = {
    ("config", "files"): "configs are read and written",
    ("command_line", "config"): "the command line reads configs",
    ("command_line", "exit_codes"): "and ends with a code",
    ("command_line", "files"): "and says which file failed",
    ("command_line", "foreign"): "or which package is missing",
    ("command_line", "shipped"): "and takes names of what is shipped",
    ("config", "shipped"): "a config may be named",
    ("command_line", "sharding"): "the flag --mesh names a mesh",
    ("progress", "compiling"): "the time left is without that of compiling",
    ("sequence", "text"): "documents hold text, which a tokenizer turns into ids",
    ("preferences", "tokenize"): "both make datasets shard by shard, and resume alike",
    ("generate", "scorers"): "what was drawn is scored",
    ("interop", "data"): "a saved model states the data it was made for",
}

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_MODULES = 12  # in a folder, beside __init__ and __main__

FILES = sorted(PACKAGE.rglob("*.py"))
# The folder distinguishes them: tasks, evaluators and scorers; the stages of each pipeline.
SAME_NAMES = {"registry", "stages"}


def _room(path: pathlib.Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _is_command(path: pathlib.Path) -> bool:
    return path.name == "__main__.py" or 'if __name__ == "__main__":' in path.read_text()


def _imports(tree: ast.AST):
    """Rooms imported anywhere in a file, also inside functions: (line number, room)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room"
            if node.module == "emu3_jax":
                names = [f"emu3_jax.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "emu3_jax" and len(parts) > 1:
                yield node.lineno, parts[1]


def _problems(path: pathlib.Path) -> list[str]:
    room = _room(path)
    floor = COMMANDS if _is_command(path) else FLOORS[room]
    problems = []
    for line, imported in _imports(ast.parse(path.read_text())):
        below = FLOORS[imported]
        same_floor = below == floor and imported != room and (room, imported) not in NEIGHBOURS
        if imported != room and (below > floor or same_floor):
            problems.append(
                f"{path.relative_to(PACKAGE.parent)}:{line}: floor {floor} imports "
                f"{imported} on floor {below}"
            )
    return problems


def test_every_room_has_a_floor():
    rooms = {_room(path) for path in FILES} - {"__init__"}
    assert rooms <= FLOORS.keys(), f"no floor for {sorted(rooms - FLOORS.keys())}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    if path == PACKAGE / "__init__.py":
        return  # the public module imports from every floor, lazily
    assert not _problems(path)


def test_an_upward_import_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    for room, text, found in [
        ("models", "from emu3_jax.train.loop import train", True),
        ("models", "def f():\n    import emu3_jax.data.tokens.records", True),
        ("models", "from emu3_jax import generate", True),
        ("train", "from emu3_jax.evaluate import registry", True),
        ("train", "from emu3_jax.models import rope", False),
        ("train", "from emu3_jax.train import loop", False),
        (
            "models",
            'from emu3_jax.train import loop\nif __name__ == "__main__":\n    loop()',
            False,
        ),
    ]:
        (tmp_path / room).mkdir(exist_ok=True)
        path = tmp_path / room / "file.py"
        path.write_text(text)
        assert bool(_problems(path)) == found, text


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_small(path):
    text = path.read_text()
    too_long = []
    if text.count("\n") > MAX_FILE_LINES:
        too_long.append(f"{text.count(chr(10))} lines")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                too_long.append(f"{node.name}: {lines} lines")
    assert not too_long


def test_folders_are_small():
    crowded = {}
    others = (path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))
    for folder in {path.parent for path in (*FILES, *others)}:
        modules = [path for path in folder.glob("*.py") if not path.stem.startswith("__")]
        if len(modules) > MAX_MODULES:
            crowded[folder.relative_to(ROOT).as_posix()] = len(modules)
    assert not crowded


def test_tests_are_in_the_folders_of_what_they_test():
    """Each folder of tests is one of the package, or of the project beside it."""
    folders = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    elsewhere = {f for f in folders if not (PACKAGE / f).is_dir() and not (ROOT / f).is_dir()}
    assert elsewhere == {pathlib.Path("project")}  # of the project as a whole


def test_no_two_modules_read_alike():
    """A name such as report.py stands for one thing; __init__ and __main__ are everywhere."""
    stems = [path.stem for path in FILES if not path.stem.startswith("__")]
    assert not {stem for stem in stems if stems.count(stem) > 1} - SAME_NAMES
