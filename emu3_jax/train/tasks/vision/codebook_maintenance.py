"""Codebook maintenance during training: initialisation from latents, dead-code revival, averages.

The Emu3 paper has 32,768 codes and does not describe how they were kept in use; this method is
ours. It changes the state after an update, so the objective does not depend on it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.config import check_choice
from emu3_jax.models.vision.quantizers import maintenance
from emu3_jax.train.task import TrainState

USAGE, AVERAGE = "codebook_usage", "codebook_average"
KINDS = ("stills", "clips")
STARTS = ("as_is", "latents", "kmeans")
# Lloyd steps of the start "kmeans". Few are enough: training moves the entries further.
KMEANS_ITERATIONS = 10
# Decay per step of the moving count of each code's use. It averages over about 33 steps, fewer than
# the default 50 between two revivals.
USAGE_DECAY = 0.97


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """Settings of codebook maintenance. Emu3 published none of this.

    Attributes:
      start: what to do after the first step from random weights, when few entries have been used.
        "latents" moves the unused entries to latents of the batch; "kmeans" moves all entries to
        k-means centres of the latents; "as_is" moves nothing. Entries that the section `start`
        loads stay, unless they are revived.
      revive_every: steps between revivals of dead codes; 0 turns revival off.
      revive_below: a code is dead if its moving count is below this share of the mean count.
      revive_until: share of the run after which revival stops, so that codes settle.
      average_decay: if above 0, entries are moving averages of the latents that chose them (van den
        Oord 2017, appendix A.1), with this decay, instead of being trained by the codebook loss.
    """

    start: str = "latents"
    revive_every: int = 50
    revive_below: float = 0.05
    revive_until: float = 0.7
    average_decay: float = 0.0

    def __post_init__(self):
        check_choice("start", self.start, STARTS)
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1), got {self.average_decay}")
        for name in ("revive_every", "revive_below", "revive_until"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def has_table(params: Any) -> bool:
    """Returns whether the quantizer has a table of entries; lookup-free ones have none."""
    return "embedding" in params.get("quantize", {})


def start_counts(config: CodebookConfig, size: int, params: Any) -> dict[str, Any]:
    """Returns initial collections, boxed: {USAGE: …}, and {AVERAGE: …} with average_decay.

    Args:
      config: settings of codebook maintenance.
      size: number of codes, N.
      params: params of the tokenizer, boxed.
    """
    usage = {
        kind: nn.LogicallyPartitioned(jnp.zeros((size,), jnp.float32), names=("code",))
        for kind in KINDS
    }
    if not config.average_decay:
        return {USAGE: usage}
    boxed = params["quantize"]["embedding"]
    counts, sums = maintenance.start_average(nn.unbox(boxed))
    average = maintenance.CodebookAverage(
        nn.LogicallyPartitioned(counts, names=("code",)),
        nn.LogicallyPartitioned(sums, names=("code", None)),
    )
    return {USAGE: usage, AVERAGE: average}


def count(model_state: Any, latents: dict, codes: dict, config: CodebookConfig) -> Any:
    """Returns the collections after counting the codes of a batch.

    Args:
      model_state: collections with USAGE, and AVERAGE if averages are used.
      latents: kind → list of float [..., D].
      codes: kind → list of int [...]; a kind without an entry keeps its counts.
      config: settings of codebook maintenance.
    """
    usage = dict(model_state[USAGE])
    for kind, found in codes.items():
        joined = jnp.concatenate([x.reshape(-1) for x in found])
        usage[kind] = maintenance.update_usage(usage[kind], joined, USAGE_DECAY)
    model_state = {**model_state, USAGE: usage}
    if AVERAGE in model_state:
        assert latents.keys() == codes.keys(), "averages need the latents of all codes"
        flat_MD = jnp.concatenate(
            [x.reshape(-1, x.shape[-1]) for kind in latents for x in latents[kind]]
        )
        flat_M = jnp.concatenate([x.reshape(-1) for kind in latents for x in codes[kind]])
        model_state[AVERAGE] = maintenance.update_average(
            model_state[AVERAGE], jax.lax.stop_gradient(flat_MD), flat_M, config.average_decay
        )
    return model_state


def health(model_state: Any, config: CodebookConfig) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns metrics of the moving counts: perplexity and share of dead codes, total and by kind.

    A code is dead for a kind if it is dead by the counts of that kind alone. `codebook/shared` is
    the share of codes that are dead for neither kind.
    """
    one = jnp.ones((), jnp.float32)
    usage = model_state[USAGE]
    total = sum(usage.values())
    metrics = {"codebook/perplexity": (maintenance.perplexity(total), one)}
    metrics["codebook/dead"] = (jnp.mean(total < _dead_below(total, config)), one)
    for kind, counts in usage.items():
        # A kind that never occurs has no perplexity; its metrics have count 0.
        seen = (jnp.sum(counts) > 0).astype(jnp.float32)
        dead = jnp.mean(counts < _dead_below(counts, config))
        safe = jnp.where(seen > 0, counts, 1.0)
        metrics[f"codebook/perplexity_{kind}"] = (maintenance.perplexity(safe) * seen, seen)
        metrics[f"codebook/dead_{kind}"] = (dead * seen, seen)
    both = jnp.stack([counts >= _dead_below(counts, config) for counts in usage.values()])
    metrics["codebook/shared"] = (jnp.mean(jnp.all(both, axis=0)), one)
    return metrics


def after_update(
    state: TrainState, config: CodebookConfig, steps: int, latents_of, key: jax.Array
) -> TrainState:
    """Returns the state after codebook maintenance; called inside jit.

    Args:
      state: the state after the optimizer's update.
      config: settings of codebook maintenance.
      steps: number of steps of the whole run.
      latents_of: state → float [M, D], the latents of the batch; computed only when needed.
      key: a random key.
    """
    if not has_table(state.params):
        return state
    if config.average_decay:
        averaged = maintenance.averaged_codebook(state.model_state[AVERAGE])
        state = state.replace(params=with_codebook(state.params, averaged))
    step = state.step + 1
    due = (step == 1) & (config.start != "as_is")
    if config.revive_every:
        due |= (step % config.revive_every == 0) & (step <= config.revive_until * steps)
    elif config.start == "as_is":
        return state

    def moved(state):
        # One call for both branches: the encoder takes long to compile.
        latents_MD = latents_of(state)
        if config.start != "kmeans":
            return _revive(state, config, latents_MD, key)
        return jax.lax.cond(
            step == 1,
            lambda s: _restart(s, config, latents_MD, key),
            lambda s: _revive(s, config, latents_MD, key),
            state,
        )

    return jax.lax.cond(due, moved, lambda s: s, state)


def _restart(state: TrainState, config: CodebookConfig, latents_MD, key) -> TrainState:
    size = codebook(state.params).shape[0]
    entries = maintenance.kmeans(latents_MD, key, size, KMEANS_ITERATIONS)
    return _moved(state, entries, jnp.ones((size,), bool))


def _revive(state: TrainState, config: CodebookConfig, latents_MD, key) -> TrainState:
    total = sum(state.model_state[USAGE].values())
    entries, revived = maintenance.revive_dead_codes(
        codebook(state.params), total, latents_MD, key, _dead_below(total, config)
    )
    return _moved(state, entries, revived)


def _moved(state: TrainState, entries_ND: jax.Array, moved_N: jax.Array) -> TrainState:
    """Replaces the entries where `moved_N` is True, in the weights and in all averages."""
    # A moved code gets the mean count, so that it has time to be chosen before the next revival.
    usage = {
        kind: jnp.where(moved_N, jnp.mean(counts), counts)
        for kind, counts in state.model_state[USAGE].items()
    }
    model_state = {**state.model_state, USAGE: usage}
    entries_ND = entries_ND.astype(codebook(state.params).dtype)
    if AVERAGE in model_state:
        fresh, old = maintenance.start_average(entries_ND), model_state[AVERAGE]
        model_state[AVERAGE] = maintenance.CodebookAverage(
            jnp.where(moved_N, fresh.counts_N, old.counts_N),
            jnp.where(moved_N[:, None], fresh.sums_ND, old.sums_ND),
        )
    state = state.replace(params=with_codebook(state.params, entries_ND), model_state=model_state)
    if state.ema is not None:
        averaged = jnp.where(moved_N[:, None], entries_ND, codebook(state.ema))
        state = state.replace(ema=with_codebook(state.ema, averaged))
    return state


def _dead_below(usage_N: jax.Array, config: CodebookConfig) -> jax.Array:
    return config.revive_below * jnp.mean(usage_N)


def codebook(params: Any) -> jax.Array:
    """Returns the table of entries, float [N, D]."""
    return params["quantize"]["embedding"]


def with_codebook(params: Any, entries_ND: jax.Array) -> Any:
    """Returns the params with another table of entries, [N, D]."""
    return {**params, "quantize": {**params["quantize"], "embedding": entries_ND}}
