"""The README and the documentation are correct: their commands, paths and links exist."""

import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys
import zipfile

import pytest
from paths import PAGES, ROOT
from resolved_configs import every_field

from emu3_jax import shipped
from emu3_jax.config import apply_overrides, load_config

FOLDERS = ("docs", "assets", "benchmarks", "configs", "examples", "launch", "tests")
OTHERS = [page for name in FOLDERS[1:] for page in (ROOT / name).rglob("*.md")]
MARKDOWN = [*ROOT.glob("*.md"), *PAGES[1:], *OTHERS]
README = PAGES[0].read_text(encoding="utf-8")
PLACEHOLDERS = {"a.b"}
_LOOP = re.compile(r"^(for \w+ in .*; do)\n(.*?)^done$", re.MULTILINE | re.DOTALL)
_BASH = re.compile(r"^ *```bash\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def unrolled(block):
    """A bash block with each loop's lines as often as it runs, its variable filled in by bash."""

    def lines(loop):
        script = f"{loop[1]}\ncat <<END\n{loop[2]}END\ndone"
        return subprocess.check_output(["bash", "-c", script], text=True)

    return _LOOP.sub(lines, block)


def commands():
    """Every `python -m emu3_jax...` line of the bash blocks, with its page."""
    found = []
    for page in PAGES:
        for block in _BASH.findall(page.read_text(encoding="utf-8")):
            lines = unrolled(block).replace("\\\n", " ").splitlines()
            found += [(page.name, line.strip()) for line in lines if "python -m emu3_jax" in line]
    return found


def source_of(module):
    """The text of a command: its module or folder, and the modules that it imports from."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} does not exist"
    path = pathlib.Path(spec.origin)
    paths = [*path.parent.rglob("*.py")] if path.name == "__init__.py" else [path]
    text = "\n".join(path.read_text() for path in paths)
    imported = re.findall(r"^from (emu3_jax[\w.]*) import", text, re.M)
    paths += [ROOT / f"{name.replace('.', '/')}.py" for name in set(imported)]
    return "\n".join(path.read_text() for path in paths if path.is_file())


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_and_their_flags_exist(page, line):
    words = line.split()
    module = words[words.index("-m") + 1]
    source = source_of(module)
    for flag in re.findall(r"--(\w+)(?=[=\s]|$)", line):
        names = f"{flag}|{flag.removeprefix('no')}"  # --noestimate is --estimate=false
        assert flag == "config" or re.search(rf'"(--)?({names})"', source), (
            f"{module} has no --{flag}"
        )


# Not those with a placeholder for the config.
WITH_CONFIG = [c for c in commands() if re.search(r"--config=[a-z]", c[1])]


@pytest.mark.parametrize(("page", "line"), WITH_CONFIG)
def test_configs_and_their_overrides_exist(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)  # for configs that read the folder in their argument
    config = load_config(re.search(r"--config=(\S+)", line)[1])
    words = [w.removeprefix("--config.") for w in shlex.split(line) if w.startswith("--config.")]
    overrides = dict(word.split("=", 1) for word in words)
    apply_overrides(config, overrides)
    every_field(config)


def test_keys_that_pages_name_within_sentences_exist():
    def keys(values, prefix=""):
        """Dotted names of all values and sections; a number stands for the entries of a list."""
        if isinstance(values, list):
            values = dict.fromkeys("0", values[0]) if values else {}
        if not isinstance(values, dict):
            return set()
        names = {f"{prefix}{name}" for name in values}
        return names.union(*(keys(value, f"{prefix}{name}.") for name, value in values.items()))

    files = (ROOT / "tests/golden/configs").glob("*.json")
    known = set().union(*(keys(json.loads(file.read_text())) for file in files))
    for page in PAGES:
        text = _BASH.sub("", page.read_text(encoding="utf-8"))
        for key in re.findall(r"--config\.([a-z][\w.]*[a-z])(?![\w.])", text):
            key = re.sub(r"\.\d+(?=\.|$)", ".0", key)
            if key not in PLACEHOLDERS:
                assert key in known, f"{page}: --config.{key}"


def test_paths_in_the_folder_listing_exist():
    listing = re.search(r"^```\nemu3_jax/\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    for line in listing.splitlines():
        name = line.split()[0]
        folder = ROOT / "emu3_jax" if line.startswith("  ") else ROOT
        assert (folder / name).exists(), f"{name} does not exist"


def test_every_room_of_the_package_is_listed():
    rooms = {path.name for path in (ROOT / "emu3_jax").iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(re.findall(r"^  (\w+)/", README, re.MULTILINE))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_that_pages_name_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:emu3_jax|tests|docs|configs|launch)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name


def links(page):
    """Relative links of a page: (file, heading or "")."""
    found = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    return [((page.parent / file).resolve() if file else page, heading) for file, heading in found]


def anchors(page):
    """What links to the headings of a page are called."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    plain = [re.sub(r"[^\w\- ]", "", line).lower() for line in re.findall(r"^#+ (.*)$", text, re.M)]
    return {line.strip().replace(" ", "-") for line in plain}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    for file, heading in links(page):
        assert file.exists(), f"{page.name}: {file}"
        assert not heading or heading in anchors(file), f"{page.name}: {file.name}#{heading}"


def test_the_readme_links_every_page():
    linked = {file for file, _ in links(PAGES[0])}
    pages = {page for page in PAGES[1:] if page.name != "index.md"}
    assert {ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *pages} <= linked


def test_pages_that_code_names_exist():
    files = [ROOT / "setup.py", *ROOT.glob("requirements*.txt"), *(ROOT / "launch").iterdir()]
    for folder in ("emu3_jax", "benchmarks", "configs", "examples", "tests"):
        files += (ROOT / folder).rglob("*.py")
    for file in files:
        named = re.findall(r"(?<![\w/])docs/[a-z_/]+\.md", file.read_text(encoding="utf-8"))
        missing = {name for name in named if not (ROOT / name).exists()}
        assert not missing, f"{file.relative_to(ROOT)}: {missing}"


def test_released_repositories_are_named():
    table = (ROOT / "docs/how_to/released_weights.md").read_text(encoding="utf-8")
    for name in ("Stage1", "Gen", "Chat", "VisionTokenizer", "Gen-hf", "Chat-hf"):
        assert f"`BAAI/Emu3-{name}`" in table


def test_captions_that_pages_have_nano_draw_are_in_its_corpus():
    """It draws nothing else."""
    with zipfile.ZipFile(shipped.ASSETS / "fluent_emoji.zip") as corpus:
        rows = corpus.read("captions.jsonl").decode().splitlines()
    captions = {json.loads(row)["caption"] for row in rows}
    drawn = re.findall(r'text_to_image\(bundle, \["(.*?)"\]', README)
    for _, line in commands():
        words = shlex.split(line)
        if "--task=text_to_image" in words and re.search(r"--model=\S*nano", line):
            drawn += [w.split("=", 1)[1] for w in words if w.startswith("--prompt=")]
    assert len(drawn) >= 2 and set(drawn) <= captions


def test_importing_the_package_loads_nothing_heavy():
    heavy = "jax jaxlib flax optax orbax grain numpy ml_collections safetensors tiktoken".split()
    heavy += "sentencepiece PIL av tensorflow tensorflow_datasets array_record absl".split()
    code = f"import emu3_jax, sys; print(*sorted(set(sys.modules) & set({heavy})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
