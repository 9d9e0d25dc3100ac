"""start.shared_ids=-1: tuning takes all vectors, and refuses ids that mean other things."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_models
from tiny_tasks import pretrain_task, tiny_pretrain_task
from token_records import GRAMMAR

from emu3_jax import sharding, vocab
from emu3_jax.config import ConfigError
from emu3_jax.interop.bundle import Language, save_language
from emu3_jax.interop.language import language_model
from emu3_jax.sequence import Grammar
from emu3_jax.sharding import MeshConfig
from emu3_jax.text import ByteTokenizer
from emu3_jax.train.tasks.language.transformer_start import TransformerStart

TINY = tiny_pretrain_task().config
KEY = jax.random.key(0)


def save(folder, form, model=TINY.model, grammar=GRAMMAR, vision="v1"):
    """A model as a run directory, or in BAAI's layout with or without a bundle; its weights."""
    task = pretrain_task(model, TINY.data, grammar=grammar)
    variables = nn.unbox(task.init(jax.random.key(5)))
    if form != "bare":
        save_language(folder, Language(grammar.vocab, grammar, vision))
    if form == "run":
        tiny_models.save_language_run(folder, model, variables, variables["params"])
    else:
        language_model.save(folder, model, variables["params"])
    return variables["params"]


def tuned(folder, vision="v1"):
    start = TransformerStart(transformer=str(folder), shared_ids=-1)
    return pretrain_task(TINY.model, TINY.data, start=start, vision_fingerprint=vision)


@pytest.mark.parametrize("form", ["run", "bundle", "bare"])
def test_every_weight_is_taken(tmp_path, form):
    expected = save(tmp_path, form)
    task, mesh = tuned(tmp_path), sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    boxed = task.init(KEY)
    with jax.set_mesh(mesh):
        fresh = jax.device_put(nn.unbox(boxed), sharding.state_shardings(boxed, mesh))
        found = jax.device_get(task.initial_weights()(fresh)["params"])
    size = TINY.model.vocab_size
    for tree in (found, expected):  # the rows that pad the vocabulary are never read
        tree["embed"]["embedding"] = tree["embed"]["embedding"][:size]
        tree["lm_head"]["kernel"] = tree["lm_head"]["kernel"][:, :size]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("form", ["run", "bundle"])
def test_ids_of_another_meaning_are_refused(tmp_path, form):
    save(tmp_path, form)
    with pytest.raises(ValueError, match="has the vision tokenizer v1, but the data has v2"):
        tuned(tmp_path, vision="v2").initial_weights()
    other = tmp_path / "other"
    other.mkdir()
    ids = vocab.small(GRAMMAR.vocab.text_size + 20, GRAMMAR.vocab.codebook_size - 20)
    assert ids.size == GRAMMAR.vocab.size
    save(other, form, grammar=Grammar(ids, ByteTokenizer()))
    with pytest.raises(ValueError, match="has the vocabulary .* but the data has"):
        tuned(other).initial_weights()


@pytest.mark.parametrize("form", ["run", "bare"])
@pytest.mark.parametrize("more", [-8, 8])
def test_another_number_of_ids_is_refused(tmp_path, form, more):
    size = TINY.model.vocab_size + more
    other = vocab.small(GRAMMAR.vocab.text_size, GRAMMAR.vocab.codebook_size + more)
    model = dataclasses.replace(TINY.model, vocab_size=size)
    save(tmp_path, form, model, Grammar(other, ByteTokenizer()))
    with pytest.raises(ValueError, match=f"has {size} token ids and .* cannot be shared"):
        tuned(tmp_path).initial_weights()


def test_a_number_below_all_is_refused(tmp_path):
    start = TransformerStart(transformer=str(tmp_path), shared_ids=-2)
    task = pretrain_task(TINY.model, TINY.data, start=start)
    with pytest.raises(ConfigError, match=r"shared_ids must be -1 \(all\) or more, got -2"):
        task.initial_weights()
