"""AdamW with warm-up, a decay schedule, clipping, and weight decay on some of the weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Which weights decay -> whether a leaf of this name does.
DECAYED = {
    "kernels": lambda name: name == "kernel",
    "all_but_norms": lambda name: name not in ("scale", "bias"),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Emu3 states the peak (5e-5) and "cosine to zero" (paper section 2.4); betas, epsilon, weight
    decay and clipping are unknown for pretraining, so the defaults are those of the official
    fine-tuning script (scripts/t2i_sft.sh), with a smaller clipping norm.

    Attributes:
      learning_rate: peak learning rate, reached after `warmup_steps`.
      warmup_steps: steps over which the learning rate rises evenly to the peak.
      warmup_from: what the first of these steps is: "first_step", one share of the peak, or "zero",
        no update of the weights, so that the peak comes one step later (transformers' schedules,
        and so the official fine-tuning script).
      schedule: "cosine" | "linear" | "constant", from the peak to `final_fraction` × peak.
      final_fraction: learning rate of the last step as a share of the peak.
      b1: decay per step of Adam's first moment.
      b2: decay per step of Adam's second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay, per step times the learning rate.
      decayed: the weights that decay: "kernels", the matrices of the layers and the output, or
        "all_but_norms", the table of embeddings too (transformers' Trainer, and so the official
        fine-tuning script); see `decay_mask`.
      clip_norm: global gradient norm limit; 0 turns clipping off.
      second_moment: dtype that stores Adam's second moment: "float32", or "bfloat16", which saves
        2 bytes per weight. It is computed in float32 either way. bfloat16 needs b2 <= 0.98: above
        that, its changes are too small for eight bits of mantissa.
    """

    learning_rate: float = 5e-5
    warmup_steps: int = 100
    warmup_from: str = "first_step"
    schedule: str = "cosine"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed: str = "kernels"
    clip_norm: float = 1.0
    second_moment: str = "float32"

    def __post_init__(self):
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule must be cosine, linear or constant, got {self.schedule!r}")
        if self.warmup_from not in ("first_step", "zero"):
            raise ValueError(f"warmup_from must be first_step or zero, got {self.warmup_from!r}")
        if self.decayed not in DECAYED:
            raise ValueError(f"decayed must be {' or '.join(DECAYED)}, got {self.decayed!r}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        for name in ("learning_rate", "final_fraction", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.second_moment not in ("float32", "bfloat16"):
            raise ValueError(
                f"second_moment must be float32 or bfloat16, got {self.second_moment!r}"
            )
        if self.second_moment == "bfloat16" and self.b2 > 0.98:
            raise ValueError(f"second_moment=bfloat16 needs b2 of at most 0.98, got {self.b2}")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns step → learning rate: linear warm-up, then the chosen decay until the last step."""
    decay_steps = max(1, total_steps - config.warmup_steps)
    peak, floor = config.learning_rate, config.final_fraction
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, alpha=floor),
        "linear": lambda: optax.linear_schedule(peak, peak * floor, decay_steps),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    warmup = optax.linear_schedule(0.0, peak, max(1, config.warmup_steps))
    # A first step at a rate of zero would be wasted.
    first = {"first_step": 1, "zero": 0}[config.warmup_from]
    return optax.join_schedules(
        [lambda step: warmup(step + first), decay], boundaries=[config.warmup_steps]
    )


def decay_mask(params: Any, decayed: str = "kernels") -> Any:
    """Returns a tree that is True where weight decay applies; boxes are kept.

    The names of leaves decide. The number of axes cannot, since stacked layers add one.

    Args:
      params: the weights.
      decayed: "kernels": leaves called "kernel", the matrices of every layer. Norms, biases,
        embedding tables and codebooks have other names. "all_but_norms": all leaves but those
        called "scale", which norms have, and "bias".
    """

    def decays(path, leaf) -> bool:
        del leaf
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        return bool(names) and DECAYED[decayed](names[-1])

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimizerConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optax transformation and the schedule it follows."""
    schedule = make_schedule(config, total_steps)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    # The parts of optax.adamw, which cannot store the second moment in another dtype.
    adamw = optax.chain(
        _scale_by_adam(config),
        optax.add_decayed_weights(
            config.weight_decay, functools.partial(decay_mask, decayed=config.decayed)
        ),
        _scale_by_rate_of_step(schedule),
    )
    return optax.chain(clip, adamw), schedule


def _scale_by_rate_of_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Scales updates by minus the learning rate of the run's own step.

    `update` takes `step`, int32, the number of steps before this one. optax's own count stands
    still where an update is skipped, and the rate would lag behind the schedule from then on.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, step, **rest):
        del state, params, rest
        rate = schedule(step)
        updates = jax.tree.map(lambda u: jnp.asarray(-rate, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(count=step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.second_moment == "float32":
        return adam

    def store(state, dtype):
        return state._replace(nu=jax.tree.map(lambda x: x.astype(dtype), state.nu))

    def init(params):
        return store(adam.init(params), config.second_moment)

    def update(gradients, state, params=None):
        updates, state = adam.update(gradients, store(state, "float32"), params)
        return updates, store(state, config.second_moment)

    return optax.GradientTransformation(init, update)
