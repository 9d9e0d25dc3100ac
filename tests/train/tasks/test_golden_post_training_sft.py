"""Tuning on captioned images against the official script; the folder is GOLDEN_POST_TRAINING's.

Ids, loss weights and options are those of configs/post_training/sft_drawing.py; shapes, counts and
hyper-parameters those of the files, so that the same tests read other figures.
"""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN, ROOT
from tiny_tasks import pretrain_task
from token_records import write_dataset

from emu3_jax.config import load_config, to_dataclass
from emu3_jax.data.tokens.mixture import MixtureEntry, open_mixture
from emu3_jax.data.tokens.packing import assemble
from emu3_jax.data.tokens.pipeline import DataConfig
from emu3_jax.data.tokens.records import Record
from emu3_jax.interop.language import language_model
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.sequence import Grammar, Image, LossWeights, Text
from emu3_jax.sequence.official import IGNORED, sft_sample
from emu3_jax.text import load_text_tokenizer
from emu3_jax.train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from emu3_jax.train.step import make_train_step
from emu3_jax.train.task import TrainState
from emu3_jax.vocab import Vocab

FOLDER = pathlib.Path(os.environ.get("GOLDEN_POST_TRAINING", GOLDEN / "post_training"))
LOGITS, LOSS, WEIGHTS, NORM, NORM_AFTER, RATE = 2e-4, 1e-5, 2e-5, 1e-5, 1e-6, 1e-12
SIX_LOSSES, SIX_NORMS = 1e-4, 1e-4
# The stated losses after accumulation are float32 alone, and up to 1.05e-5 off the same step in
# float64; so are ours, up to 0.8e-5. Twice their sum.
ACCUMULATED_LOSS = 4e-5


@pytest.fixture(scope="module")
def arrays():
    with np.load(FOLDER / "sft.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def figures():
    return json.loads((FOLDER / "sft.json").read_text())


@pytest.fixture(scope="module")
def config():
    return load_config(str(ROOT / "configs/post_training/sft_drawing.py"))


@pytest.fixture(scope="module")
def grammar(figures):
    return Grammar(
        Vocab(**figures["vocabulary"]), load_text_tokenizer(FOLDER / "sft/ranks.tiktoken")
    )


@pytest.fixture(scope="module")
def samples(arrays, figures):
    """(caption, codes) of each; the one whose caption the official code dropped has none."""
    captions = list(figures["texts"])
    captions[figures["null_prompt_of_sample"]] = ""
    return [(caption, arrays[f"codes{i}"]) for i, caption in enumerate(captions)]


@pytest.fixture(scope="module")
def rows(samples, figures, config, grammar, tmp_path_factory):
    """Rows of one document each, as the config's mixture and loss weights make them."""
    records = [
        Record(str(i), "golden", "image", (Text(c, ids=grammar.text_ids(c)), Image(codes)))
        for i, (c, codes) in enumerate(samples)
    ]
    folder = write_dataset(tmp_path_factory.mktemp("sft") / "tokens", records, grammar)
    stated = dict(config.data.mixture[0], dataset=str(folder), null_prompt=0.0)
    entries, length = (to_dataclass(MixtureEntry, stated),), figures["length"]
    weights = to_dataclass(LossWeights, config.data.loss_weights.to_dict())
    (documents,) = open_mixture(entries, grammar, weights, length, seed=0)
    found = {}
    for n in range(len(samples)):  # one epoch, in another order
        tokens = documents[n]
        codes = grammar.vocab.codes(tokens.ids[grammar.vocab.is_visual(tokens.ids)])
        (i,) = [i for i, (_, c) in enumerate(samples) if np.array_equal(c.ravel(), codes)]
        found[i] = assemble([(tokens, 0, len(tokens.ids) - 1)], length, grammar.vocab.pad)
    return [found[i] for i in range(len(samples))]


def batch(rows, *chosen):
    return {name: np.stack([rows[i][name] for i in chosen]) for name in rows[0]}


@pytest.fixture(scope="module")
def model():
    return language_model.load(FOLDER / "sft")


@pytest.fixture(scope="module")
def task(model, figures, grammar):
    """The config's task with the golden model, whose dropout is off."""
    model_config = dataclasses.replace(model[0], dropout=0.0)
    data = DataConfig((MixtureEntry("unused", "text_to_image"),), 2, figures["length"])
    return pretrain_task(model_config, data, grammar=grammar)


def optimizer_config(figures, config, **changes):
    """The config's optimizer with the hyper-parameters of the figures."""
    stated = figures["hyper_parameters"]
    changes = {
        "learning_rate": stated["lr"],
        "b1": stated["betas"][0],
        "b2": stated["betas"][1],
        "eps": stated["eps"],
        "weight_decay": stated["weight_decay"],
        "clip_norm": stated["max_grad_norm"],
        **changes,
    }
    return to_dataclass(OptimizerConfig, {**config.run.optimizer.to_dict(), **changes})


def stepper(task, model, optimizer_config, steps, **options):
    """(state before the first step, the jitted step)."""
    optimizer, _ = make_optimizer(optimizer_config, steps)
    params = jax.tree.map(jnp.asarray, model[1])
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), None)
    return state, jax.jit(make_train_step(task, optimizer, key=jax.random.key(0), **options))


@pytest.fixture(scope="module")
def loss_of(task):
    @jax.jit
    def loss(params, batch):
        found = task.loss(params, {}, batch, jax.random.key(0), 0)
        return found.total / found.weight

    return lambda params, batch: float(loss(params, batch))


def named(model_config, params):
    """Name in the official file → float64 array."""
    pairs = language_model.key_map(model_config)
    tensors = language_model.file_tensors(model_config, params, "float32", pairs)
    return {name: np.asarray(array, np.float64) for name, array in tensors}


def test_ids_and_labels_are_the_official_samples(samples, arrays, figures, grammar):
    for i, (caption, codes) in enumerate(samples):
        ids, labels = sft_sample(grammar, caption, codes, figures["length"])
        np.testing.assert_array_equal(ids, arrays["input_ids"][i])
        np.testing.assert_array_equal(labels, arrays["labels"][i])


def test_the_config_trains_on_the_same_ids_and_labels(rows, arrays):
    found = batch(rows, *range(len(rows)))
    labels = arrays["labels"][:, 1:]
    np.testing.assert_array_equal(found["inputs"], arrays["input_ids"])
    np.testing.assert_array_equal(found["weights"][:, :-1], labels != IGNORED)
    trained = labels != IGNORED
    np.testing.assert_array_equal(found["targets"][:, :-1][trained], labels[trained])
    real = found["segment_ids"] > 0
    np.testing.assert_array_equal(real, arrays["attention_mask"] > 0)


def test_logits_and_losses_of_tokens(task, model, rows, arrays, figures):
    found = batch(rows, *range(len(rows)))
    names = ("inputs", "positions", "segment_ids")
    params, apply = model[1], task.model.apply
    hidden = apply({"params": params}, *(found[n] for n in names), method="hidden")
    kernel = params["lm_head"]["kernel"]
    logits = np.asarray(hidden[0] @ kernel)[: len(arrays["logits_first_row"])]
    expected = arrays["logits_first_row"]
    assert np.abs(logits[:, : expected.shape[1]] - expected).max() < LOGITS
    size = figures["vocabulary"]["visual_start"] + figures["vocabulary"]["codebook_size"]
    nll = chunked_cross_entropy(
        hidden, kernel, found["targets"], found["weights"], vocab_size=size, chunk_tokens=32
    ).nll
    nll = np.where(found["weights"] > 0, nll, 0.0)[:, :-1]
    assert np.abs(nll - arrays["token_loss"]).max() < LOGITS


def test_losses_of_batches(loss_of, model, rows, figures):
    everything = loss_of(model[1], batch(rows, *range(len(rows))))
    assert abs(everything - figures["batch_of_all_four"]["loss_float64"]) < LOSS
    for name, pair in (("0_and_1", (0, 1)), ("2_and_3", (2, 3))):
        stated = figures[f"batch_of_samples_{name}"]
        assert abs(loss_of(model[1], batch(rows, *pair)) - stated["loss_float64"]) < LOSS
        weight = batch(rows, *pair)["weights"].sum()
        assert weight == stated["trained_tokens"]


@pytest.fixture(scope="module")
def one_step(task, model, rows, figures, config):
    constant = dict(schedule="constant", warmup_steps=0)
    state, step = stepper(task, model, optimizer_config(figures, config, **constant), 1)
    return step(state, batch(rows, 0, 1))


def test_the_gradient_of_one_step(one_step, figures):
    norm = float(one_step[1]["gradient_norm"][0])
    assert norm == pytest.approx(figures["one_step"]["grad_norm_float64"], rel=NORM)


def test_the_weights_after_one_step(one_step, task, model, arrays, figures, loss_of, rows):
    state, stated = one_step[0], figures["one_step"]
    before = named(task.config.model, model[1])
    after = named(task.config.model, state.params)
    for name, key in (
        ("model.embed_tokens.weight", "embed"),
        ("model.layers.0.self_attn.q_proj.weight", "q_proj0"),
        ("model.norm.weight", "norm"),
    ):
        assert np.abs(after[name] - arrays[f"after_step_{key}"]).max() < WEIGHTS, name
    assert after.keys() == stated["parameters"].keys()
    for name, expected in stated["parameters"].items():
        assert np.linalg.norm(after[name]) == pytest.approx(expected["norm_after"], rel=NORM_AFTER)
        update = np.linalg.norm(after[name] - before[name])
        # A difference of two float32: their rounding, 1e-7 of a weight, remains.
        assert update == pytest.approx(expected["update_norm"], rel=2e-4), name
    loss = loss_of(state.params, batch(rows, 0, 1))
    assert abs(loss - stated["loss_after_float64"]) < LOSS


def test_without_the_decay_of_the_embeddings_a_step_differs(
    task, model, rows, figures, config, arrays
):
    changes = dict(schedule="constant", warmup_steps=0, decayed="kernels")
    state, step = stepper(task, model, optimizer_config(figures, config, **changes), 1)
    after = named(task.config.model, step(state, batch(rows, 0, 1))[0].params)
    error = np.abs(after["model.embed_tokens.weight"] - arrays["after_step_embed"]).max()
    assert error > 2 * WEIGHTS


def test_the_schedule_of_the_script(arrays, config):
    expected = arrays["schedule"]
    optimizer = to_dataclass(OptimizerConfig, config.run.optimizer.to_dict())
    with jax.enable_x64(True):
        rate = make_schedule(optimizer, len(expected))
        found = np.array([rate(step) for step in range(len(expected))])
    np.testing.assert_allclose(found, expected, rtol=0, atol=RATE)


def test_six_steps_of_the_cosine(task, model, rows, figures, config, loss_of):
    stated = figures["six_steps_cosine"]
    chosen = optimizer_config(figures, config, warmup_steps=2, final_fraction=0.1)
    steps = len(stated["learning_rate"])
    schedule = make_schedule(chosen, steps)
    np.testing.assert_allclose(
        [schedule(i) for i in range(steps)], stated["learning_rate"], rtol=1e-6
    )
    state, step = stepper(task, model, chosen, steps)
    for i in range(steps):
        state, metrics = step(state, batch(rows, *((0, 1), (2, 3))[i % 2]))
        assert abs(np.divide(*metrics["loss"]) - stated["loss"][i]) < SIX_LOSSES
        norm = float(metrics["gradient_norm"][0])
        assert norm == pytest.approx(stated["grad_norm"][i], rel=SIX_NORMS)
    loss = loss_of(state.params, batch(rows, 0, 1))
    assert abs(loss - stated["loss_of_0_and_1_after"]) < SIX_LOSSES


def test_accumulation_averages_the_means_of_micro_batches(
    task, model, rows, figures, config, loss_of
):
    stated = figures["accumulation_of_two_micro_batches"]
    chosen = optimizer_config(figures, config, schedule="constant", warmup_steps=0)
    options = dict(accumulation=2, accumulated_mean=config.run.accumulated_mean)
    state, step = stepper(task, model, chosen, 1, **options)
    # Micro-batch i of two has the rows i, i + 2.
    state, metrics = step(state, batch(rows, 0, 2, 1, 3))
    assert abs(np.divide(*metrics["loss"]) - stated["mean_of_the_two_losses"]) < LOSS
    norm = float(metrics["gradient_norm"][0])
    assert norm == pytest.approx(stated["trainer_log"]["grad_norm"], rel=NORM)
    for name, pair in (("0_and_1", (0, 1)), ("2_and_3", (2, 3))):
        loss = loss_of(state.params, batch(rows, *pair))
        assert abs(loss - stated[f"loss_of_{name}_after"]) < ACCUMULATED_LOSS


def test_accumulation_of_tokens_is_another_loss(task, model, rows, figures, config):
    stated = figures["accumulation_of_two_micro_batches"]
    chosen = optimizer_config(figures, config, schedule="constant", warmup_steps=0)
    state, step = stepper(task, model, chosen, 1, accumulation=2)
    _, metrics = step(state, batch(rows, 0, 2, 1, 3))
    assert abs(np.divide(*metrics["loss"]) - stated["token_mean_would_be"]) < LOSS
