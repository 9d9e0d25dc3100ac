"""Commands: a user's mistake is one sentence on stderr and exit 2; a bug keeps its traceback."""

import os
import signal
import subprocess
import sys
import unittest.mock

import pytest
from absl import flags
from paths import ROOT

from emu3_jax import command_line

COMMAND = '''
import dataclasses, signal, os
from absl import flags
from emu3_jax import command_line
from emu3_jax.config import to_dataclass

@dataclasses.dataclass(frozen=True)
class Model:
    num_layers: int = 1
    dropout: float = 0.0

command_line.define_config("What to do.")
WHAT = flags.DEFINE_string("what", "", "What happens.")

def main():
    model = to_dataclass(Model, flags.FLAGS.config.model, "config.model")
    print(model)
    if WHAT.value == "value":
        raise ValueError("two\\nlines")
    if WHAT.value == "os":
        open("/no/such/file")
    if WHAT.value == "key":
        open(flags.FLAGS.config.rows.folder + "/train.jsonl")
    if WHAT.value.endswith("/x"):
        open(WHAT.value, "w")
    if WHAT.value.endswith("/new"):
        from emu3_jax.files import write_atomically
        write_atomically(WHAT.value, "")
    if WHAT.value == "row":
        from emu3_jax.data.sources import open_source
        open_source("train.jsonl", flags.FLAGS.config.rows.folder)
    if WHAT.value == "package":
        from emu3_jax.foreign import optional
        optional("no_such", "--what=package", "-r requirements-no.txt")
    if WHAT.value == "bucket":
        raise ImportError("Please install gcsfs to access Google Storage")
    if WHAT.value == "bug":
        raise TypeError("a bug")
    if WHAT.value == "stop":
        # Background processes ignore the signal by default.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)

if __name__ == "__main__":
    command_line.run(main, """Does things.

    --what=THING""")
'''

CONFIG = """
from ml_collections import ConfigDict
def get_config(arg=""):
    return ConfigDict(dict(model=dict(num_layers=2), rows=dict(folder="/no/rows", name="a.jsonl")))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    (folder / "command.py").write_text(COMMAND)
    (folder / "tiny.py").write_text(CONFIG)
    return folder


def _run(files, *arguments, module=None):
    program = ["-m", module] if module else [str(files / "command.py")]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {
            "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(files / "cache"),
        },
    )  # fmt: skip


def _assert_one_sentence(result, sentence):
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines() == [f"Error: {sentence}"]


def test_overrides_reach_the_dataclass_also_where_the_file_is_silent(files):
    result = _run(
        files, f"--config={files}/tiny.py", "--config.model.num_layers=5",
        "--config.model.dropout=1e-1",
    )  # fmt: skip
    assert result.stdout == "Model(num_layers=5, dropout=0.1)\n" and result.returncode == 0


def test_a_wrong_key_is_one_sentence(files):
    result = _run(files, f"--config={files}/tiny.py", "--config.model.num_layer=5")
    _assert_one_sentence(
        result, "config.model.num_layer does not exist; did you mean config.model.num_layers?"
    )


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config={0}/no.py"], "config file {0}/no.py does not exist"),
        (["--config.model.num_layers=5"], "--config.model.num_layers needs --config=FILE"),
        (
            ["--config={0}/tiny.py", "--config.model.num_layers"],
            "--config.model.num_layers needs a value, written --config.model.num_layers=VALUE",
        ),
        (
            ["--config={0}/tiny.py", "more"],
            "unexpected argument 'more'; every option is written --name=value",
        ),
        (["--whatt=1"], "Unknown command line flag 'whatt'. Did you mean: what ?"),
        (["--config={0}/tiny.py", "--what=value"], "two lines"),
        (
            ["--config={0}/tiny.py", "--what=os"],
            "/no/such/file: No such file or directory",
        ),
        (
            ["--config={0}/tiny.py", "--what=key"],
            "/no/rows/train.jsonl: No such file or directory (given by config.rows.folder)",
        ),
        (
            ["--config={0}/tiny.py", "--what=row"],
            "/no/rows/train.jsonl: cannot be read (No such file or directory) "
            "(given by config.rows.folder)",
        ),
        (
            ["--config={0}/tiny.py", "--what=/no/x"],
            "/no/x: No such file or directory (given by --what)",
        ),
        (
            ["--config={0}/tiny.py", "--what={0}/tiny.py/new"],
            "{0}/tiny.py cannot be written: it is a file, expected a folder (given by --what)",
        ),
        (
            ["--config={0}/tiny.py", "--what=package"],
            "--what=package needs the package no_such: pip install -r requirements-no.txt",
        ),
        (
            ["--config={0}/tiny.py", "--what=bucket"],
            "a path in a bucket (gs://) needs the package gcsfs: pip install gcsfs",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else value[-1].replace("{0}/", ""),
)
def test_mistakes_are_one_sentence(files, arguments, sentence):
    result = _run(files, *[a.format(files) for a in arguments])
    _assert_one_sentence(result, sentence.format(files))


@pytest.mark.parametrize(
    ("sentence", "source"),
    [
        ("data/train.jsonl: cannot be read", "--what"),
        ("out/x/1.png cannot be written: no space", "--output"),
        ("/data/train.jsonl: cannot be read", ""),  # another folder of that name
        ("a.png: cannot be read as data", ""),
        ("output='out/x' cannot be used", ""),  # says so itself
        ("outer/x.png: cannot be read", ""),
    ],
)
def test_the_flag_that_a_file_comes_from(sentence, source):
    values = flags.FlagValues()
    flags.DEFINE_string("what", "data", "", flag_values=values)
    flags.DEFINE_string("output", "out/x", "", flag_values=values)
    values.mark_as_parsed()
    with unittest.mock.patch.object(command_line.flags, "FLAGS", values):
        expected = f"{sentence} (given by {source})" if source else sentence
        assert command_line._with_source(sentence) == expected


def test_verbosity_shows_the_traceback(files):
    result = _run(files, f"--config={files}/tiny.py", "--what=value", "--verbosity=1")
    assert result.returncode == 2 and 'raise ValueError("two' in result.stderr


def test_a_bug_keeps_its_traceback(files):
    result = _run(files, f"--config={files}/tiny.py", "--what=bug")
    assert result.returncode == 1 and "TypeError: a bug" in result.stderr


def test_ctrl_c(files):
    result = _run(files, f"--config={files}/tiny.py", "--what=stop")
    assert result.returncode == 128 + signal.SIGINT
    assert result.stderr == "Stopped. Run the same command again to continue.\n"


def test_help_explains_and_lists_the_flags(files):
    result = _run(files, "--help")
    assert result.returncode == 0 and result.stdout.startswith("Does things.")
    assert "--config: What to do." in result.stdout and "--what: What happens." in result.stdout


def test_train_asks_for_its_flags(files):
    _assert_one_sentence(
        _run(files, module="emu3_jax.train"), "--config and --workdir are needed; see --help"
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ("--workdir", "--config.", "run directory", "SIGTERM")),
        ("tokenize", ("--config.", "output", "worker")),
        ("preferences", ("--config.", "scorers", "candidates (8)", "--mesh")),
        ("generate", ("--task", "--prompt", "--guidance", "text_to_image", "--seed")),
        ("evaluate", ("--evaluators", "--model", "likelihood", "results.json")),
        ("convert", ("export", "--layout", "--dtype")),
    ],
)
def test_the_real_commands_explain_themselves(command, words):
    result = subprocess.run(
        [sys.executable, "-m", f"emu3_jax.{command}", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not [word for word in words if word not in result.stdout]
    assert f"python -m emu3_jax.{command}" in result.stdout


def test_help_may_be_read_in_part():
    command = f"'{sys.executable}' -m emu3_jax.tokenize --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("Make token datasets") and not done.stderr
