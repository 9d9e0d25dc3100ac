"""A run begins from another run's directory, wherever it begins from weights, on any mesh."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_models
from tiny_tasks import pretrain_task, tiny_pretrain_task, vision_task
from token_records import GRAMMAR, text, write_dataset

from emu3_jax import sharding, vocab
from emu3_jax.config import ConfigError
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.pixels.pixel_batches import PixelConfig, PixelGroup
from emu3_jax.data.tokens.mixture import MixtureEntry
from emu3_jax.data.tokens.records import Record
from emu3_jax.interop.bundle import Language, read_learnt, read_max_context, save_language
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.vision import quantizers
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig
from emu3_jax.sequence import Grammar
from emu3_jax.sharding import MeshConfig
from emu3_jax.text import ByteTokenizer
from emu3_jax.train.tasks.language.pretrain import PretrainTask
from emu3_jax.train.tasks.language.transformer_start import TransformerStart
from emu3_jax.train.tasks.vision.vision_start import VisionTokenizerStart

MODEL = tiny_pretrain_task().config.model
DATA = tiny_pretrain_task().config.data
KEY = jax.random.key(0)


def _on_mesh(task, mesh):
    boxed = task.init(KEY)
    return jax.device_put(nn.unbox(boxed), sharding.state_shardings(boxed, mesh))


@pytest.fixture(scope="module")
def language_run(tmp_path_factory):
    """(directory, its averaged weights) of a transformer with other dropout and dtype."""
    path = tmp_path_factory.mktemp("language")
    save_language(path, Language(GRAMMAR.vocab, GRAMMAR))
    config = dataclasses.replace(MODEL, dropout=0.1, dtype="bfloat16")
    task = pretrain_task(config, DATA)
    trained = nn.unbox(task.init(jax.random.key(5)))
    averaged = jax.tree.map(lambda x: x + 1, trained["params"])
    return tiny_models.save_language_run(path, config, trained, averaged), averaged


@pytest.mark.parametrize("shared", [0, 40, GRAMMAR.vocab.size])
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=1), MeshConfig(fsdp=4, tensor=2)])
def test_a_transformer_begins_from_a_run(language_run, mesh, shared):
    path, expected = language_run
    start = TransformerStart(transformer=str(path), shared_ids=shared)
    task = pretrain_task(MODEL, DATA, start=start)
    mesh = sharding.make_mesh(mesh, jax.devices()[: mesh.fsdp * mesh.tensor])
    with jax.set_mesh(mesh):
        fresh = _on_mesh(task, mesh)
        found = jax.device_get(task.initial_weights()(fresh)["params"])
    np.testing.assert_array_equal(found["embed"]["embedding"][:shared],
                                  expected["embed"]["embedding"][:shared])  # fmt: skip
    kernels = (found["lm_head"]["kernel"], expected["lm_head"]["kernel"])
    np.testing.assert_array_equal(*(kernel[:, :shared] for kernel in kernels))
    np.testing.assert_array_equal(
        found["embed"]["embedding"][shared:], fresh["params"]["embed"]["embedding"][shared:]
    )
    for name in ("layers", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, found[name], expected[name])


@pytest.mark.parametrize(
    ("changes", "shared", "message"),
    [
        (dict(num_layers=3), 0, "model.num_layers is 2, this run has 3"),
        (dict(rope_theta=1e4), 0, "model.rope_theta is 1000000.0, this run has 10000.0"),
        ({}, GRAMMAR.vocab.size + 1, "so [0-9]+ cannot be shared"),
    ],
)
def test_a_run_of_other_sizes_is_refused_before_anything_is_read(
    language_run, changes, shared, message
):
    start = TransformerStart(transformer=str(language_run[0]), shared_ids=shared)
    task = pretrain_task(dataclasses.replace(MODEL, **changes), DATA, start=start)
    with pytest.raises(ConfigError, match=f"^start.transformer=.*: .*{message}"):
        task.initial_weights()


TOKENIZER = VisionTokenizerConfig(
    codebook_size=16, ch=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), norm_groups=2,
    temporal_downsample_factor=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def vision_run(tmp_path_factory):
    """(directory, its variables) of a vision tokenizer."""
    folder = tmp_path_factory.mktemp("vision")
    shapes = nn.unbox(tokenizer_files.abstract_variables(TOKENIZER))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32), shapes)
    return tiny_models.save_vision_run(folder / "run", TOKENIZER, variables), variables


def test_a_vision_tokenizer_begins_from_a_run(vision_run):
    path, expected = vision_run
    data = PixelConfig("unused", groups=(PixelGroup("clips", "clips", 4, 1, 2),))
    task = vision_task(TOKENIZER, data, start=VisionTokenizerStart(weights=str(path)))
    found = task.initial_weights()(nn.unbox(task.init(KEY)))
    jax.tree.map(np.testing.assert_array_equal, task.model_parts(found), expected)
    other = dataclasses.replace(TOKENIZER, codebook_size=32)
    task = vision_task(other, data, start=VisionTokenizerStart(weights=str(path)))
    with pytest.raises(ConfigError, match="start.weights has the config"):
        task.initial_weights()


def test_vision_tokens_begin_from_the_codebook_of_a_run(vision_run, tmp_path):
    path, variables = vision_run
    words = vocab.small(256, TOKENIZER.codebook_size)
    grammar = Grammar(words, ByteTokenizer())
    records = [Record("t", "s", "text", (text("a"),))]
    tokens = write_dataset(
        tmp_path / "tokens", records, grammar,
        vision_tokenizer=vision_fingerprint(TOKENIZER, variables),
    )  # fmt: skip
    mixture = (dataclasses.replace(DATA.mixture[1], dataset=str(tokens)),)
    task = pretrain_task(
        dataclasses.replace(MODEL, vocab_size=words.size),
        dataclasses.replace(DATA, mixture=mixture),
        start=TransformerStart(codebook=str(path)),
        grammar=grammar,
    )
    fresh = nn.unbox(task.init(KEY))
    found = task.initial_weights()(fresh)["params"]["embed"]["embedding"]
    entries = np.asarray(quantizers.all_entries(TOKENIZER, variables["params"]))
    rows = np.asarray(found)[words.visual_start :][: len(entries)]
    # Random projections: equal distances between entries stay alike, unequal ones differ.
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1).ravel() for x in (entries, rows)]
    assert np.corrcoef(distances)[0, 1] > 0.5


def test_a_model_that_is_tuned_on_shorter_rows_still_reads_longer_ones(tmp_path):
    record = Record("t", "s", "text", (text("a"),))
    tokens = write_dataset(tmp_path / "tokens", [record], GRAMMAR)

    def context(path, length, **start):
        mixture = (MixtureEntry(str(tokens), "text"),)
        data = dataclasses.replace(DATA, mixture=mixture, sequence_length=length)
        task = pretrain_task(MODEL, data, start=TransformerStart(**start))
        task.language = PretrainTask.language_of(task.config)
        task.save_beside(tmp_path / path)
        return read_max_context(tmp_path / path)

    assert context("first", 64) == 64
    started = {"transformer": str(tmp_path / "first")}
    assert context("second", 32, **started) == 64
    assert context("third", 128, **started) == 128


def test_what_a_model_learnt_is_recorded_with_what_it_learnt_before(language_run, tmp_path):
    def learnt(path, *tasks, **start):
        mixture = tuple(MixtureEntry("unused", task, name=f"{i}") for i, task in enumerate(tasks))
        data = dataclasses.replace(DATA, mixture=mixture)
        task = pretrain_task(MODEL, data, start=TransformerStart(**start))
        task.save_beside(tmp_path / path)
        return read_learnt(tmp_path / path)

    assert learnt("first", "text", "image_to_text", "text") == ("image_to_text", "text")
    started = {"transformer": str(tmp_path / "first")}
    assert learnt("second", "chat", **started) == ("chat", "image_to_text", "text")
    # The directory of a run that saved nothing may be used for another; one that did goes on, and
    # no longer needs what it started from.
    assert learnt("second", "text_to_image") == ("text_to_image",)
    run = language_run[0]
    tmp_path = run.parent
    assert learnt(run.name, "text") is None  # earlier starts of it did not say
    save_language(run, Language(GRAMMAR.vocab, GRAMMAR, learnt=("chat",)))
    assert learnt(run.name, "text", transformer="gone") == ("chat", "text")
    # Weights alone, as they were released, do not say what they learnt.
    (run.parent / "weights").mkdir(exist_ok=True)
    assert learnt("third", "text", transformer=str(run.parent / "weights")) is None
