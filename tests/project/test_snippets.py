"""Every Python block of the README and the documentation runs, and every example in a docstring.

The blocks of a page run one after the other in an empty folder, on eight virtual devices, and share
their names. What a page takes for granted, such as a model, is made by the function of its name
below. A block of `>>>` lines must print what it states.
"""

import doctest
import importlib
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from paths import PAGES, ROOT
from resolved_configs import every_field
from tiny_models import random_weights, save_vision_tokenizer

from emu3_jax.config import load_config
from emu3_jax.interop.language import language_model
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.train.run.goodput import GoodputLog, Ledger

_PYTHON = re.compile(r"^( *)```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
CHECK = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page):
    """The Python blocks of a page, without the indentation of a list that they stand in."""
    found = _PYTHON.findall(page.read_text(encoding="utf-8"))
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


WITH_BLOCKS = [page for page in PAGES if blocks(page)]


def generation(request, folder):
    """A model that draws, and codes of an image."""
    return {"bundle": request.getfixturevalue("tiny_bundle"), "codes": np.zeros((2, 2), np.int32)}


def released_weights(request, folder):
    """Tiny models in the folders whose names the page uses."""
    save_vision_tokenizer(folder / "Emu3-VisionTokenizer")
    config = TransformerConfig(128, 16, 32, 1, num_heads=2, num_kv_heads=2, head_dim=8)
    weights = random_weights(Transformer(config), jnp.zeros((1, 4), jnp.int32), 0.5)
    language_model.save(folder / "Emu3-Gen", config, weights["params"])
    return {}


def training(request, folder):
    """The ledger of a run."""
    (folder / "runs" / "mine").mkdir(parents=True)
    log = GoodputLog(folder / "runs" / "mine", Ledger(), 0)
    log.write(1)
    log.close()
    return {}


def evaluation(request, folder):
    """The config that the page changes."""
    return {"config": load_config("transformer_nano")}


def post_training(request, folder):
    """The configs of tokenizing and of preferences that the page changes, as one."""
    return {"config": load_config("tokenize_nano").unlock()}


def own_images(request, folder):
    """The photographs' rows."""
    (folder / "runs" / "photographs").mkdir(parents=True)
    row = {"id": "1", "image": "1.jpg", "text": "a fox", "author": "me"}
    for split in ("train", "validation"):
        (folder / "runs" / "photographs" / f"{split}.jsonl").write_text(json.dumps(row))
    return {}


MADE = (generation, released_weights, training, evaluation, post_training, own_images)
GIVEN = {function.__name__: function for function in MADE}


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_of_a_page_runs(page, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = GIVEN[page.stem](request, tmp_path) if page.stem in GIVEN else {}
    for number, code in enumerate(blocks(page), 1):
        where = f"{page.name}, block {number}"
        if code.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, names, where, str(page), 0)
            assert not doctest.DocTestRunner(optionflags=CHECK).run(test, clear_globs=False).failed
            names |= test.globs
        else:
            exec(compile(code, where, "exec"), names)
    if "get_config" in names:  # a config of one's own
        every_field(names["get_config"]())


def test_the_readme_has_short_examples():
    code = blocks(PAGES[0])
    assert len(code) >= 4 and all(len(block.strip().splitlines()) <= 14 for block in code)


EXAMPLES = [p for p in (ROOT / "emu3_jax").rglob("*.py") if "\n    >>> " in p.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_a_docstring_are_right(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert not doctest.testmod(importlib.import_module(module), optionflags=CHECK).failed
