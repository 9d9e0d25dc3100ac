"""A tiny model to be tuned, a state that begins with its weights, and judges of its codes."""

import jax
import numpy as np
import optax
from flax import linen as nn
from token_records import GRAMMAR

from emu3_jax.interop import bundle as bundle_lib
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.scorers.registry import FunctionScorer
from emu3_jax.train.step import init_state, make_train_step

KEY = jax.random.key(0)
MODEL = TransformerConfig(GRAMMAR.vocab.size, 16, 32, 2, 4, 2, 4, vocab_multiple=64)


def write_model(path, seed=1, **language):
    """A model directory of MODEL; `language` are fields of its bundle."""
    params = nn.unbox(Transformer(MODEL).init(jax.random.key(seed), np.zeros((1, 4), np.int32)))
    # Larger than at the start of training, so that two models differ.
    params = jax.tree.map(lambda p: p * 4 if p.ndim > 1 else p, params)
    fields = {"vision_fingerprint": "v1"} | language
    bundle = bundle_lib.Bundle(Transformer(MODEL), params, GRAMMAR.vocab, GRAMMAR, **fields)
    bundle_lib.save_bundle(path, bundle)
    return str(path)


def started(task, mesh, optimizer):
    """The state of a fresh run, with the weights of `start`."""
    state = init_state(task, optimizer, KEY, mesh, ema=False)
    begun = task.initial_weights()({"params": state.params, **state.model_state})
    params = begun.pop("params")
    return state.replace(params=params, model_state=begun)


def steps_of(task, mesh, count=1, rate=0.5, accumulation=1):
    """(the metrics of each step, the batches, the state after them), by SGD."""
    optimizer = optax.sgd(rate)
    with jax.set_mesh(mesh):
        state = started(task, mesh, optimizer)
        step = jax.jit(make_train_step(task, optimizer, key=KEY, accumulation=accumulation))
        stream, metrics, drawn = task.batches(mesh), [], []
        for _ in range(count):
            stream.observe(state)
            drawn.append(next(stream))
            batch = jax.device_put(drawn[-1], task.batch_shardings(mesh))
            state, found = step(state, batch)
            metrics.append({k: float(a / b) for k, (a, b) in jax.device_get(found).items() if b})
        return metrics, drawn, state


class CodeJudge:
    """A scorer of codes; subclasses say what an image int32 [h, w] is worth."""

    def of_model(self, bundle):
        return FunctionScorer(
            self.name, lambda prompts, codes: np.array([self.worth(one) for one in codes])
        )

    def score(self, prompts, images):
        raise AssertionError("it reads codes")


class LowCodes(CodeJudge):
    """The share of codes below 50."""

    name = "low"

    def worth(self, codes):
        return (codes < 50).mean()


class Picky(CodeJudge):
    """The first code; it has no score for images whose last code is even."""

    name = "picky"

    def worth(self, codes):
        return np.nan if codes[-1, -1] % 2 == 0 else codes[0, 0]


class Blind(CodeJudge):
    """No score for any image."""

    name = "blind"

    def worth(self, codes):
        return np.inf
