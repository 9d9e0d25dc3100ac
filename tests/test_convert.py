"""The command that writes a model in either layout."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import GOLDEN

from emu3_jax.interop import vision_tokenizer

VISION = GOLDEN / "vision_tokenizer"
ROOT = pathlib.Path(__file__).parents[1]


def _convert(*words):
    command = [sys.executable, "-m", "emu3_jax.convert", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_from_one_layout_to_the_other_and_back(tmp_path):
    hf, back = tmp_path / "hf", tmp_path / "back"
    done = _convert("export", f"--model={VISION}", f"--output={hf}", "--layout=hf")
    assert done.returncode == 0, done.stderr
    assert "vision tokenizer, layout hf" in done.stdout
    done = _convert("export", f"--model={hf}", f"--output={back}")
    assert done.returncode == 0, done.stderr
    expected, found = vision_tokenizer.load(VISION), vision_tokenizer.load(back)
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "--model and --output are needed"),
        (["export", "--model=nowhere", "--output=x"], "nowhere/config.json cannot be read"),
        (
            [
                "export",
                f"--model={VISION}",
                "--output=x",
                "--vision_tokenizer=y",
            ],
            "--vision_tokenizer goes with a language model and --layout=hf only",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, message):
    done = _convert(*words)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
