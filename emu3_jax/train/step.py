"""The training step: one function that updates the state, and how the state is made and sharded."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emu3_jax import sharding
from emu3_jax.models.cpu import options_to_run_once
from emu3_jax.train.task import Loss, Task, TrainState, Tree


def init_state(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh, ema: bool
) -> TrainState:
    """Creates the state already sharded: no device ever holds a whole large tensor."""
    create = jax.jit(
        lambda k: nn.unbox(_create(task, optimizer, k, ema)),
        out_shardings=state_shardings(task, optimizer, key, mesh, ema),
        compiler_options=options_to_run_once(mesh),
    )
    return create(key)


def _create(task: Task, optimizer: optax.GradientTransformation, key, ema: bool) -> TrainState:
    variables = dict(task.init(key))
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(params),
        ema=average_start(params) if ema else None,
    )


def average_start(params: Tree) -> Tree:
    """Returns the moving average before the first step: a copy in float32, since lower precision
    would round small steps away."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def state_shardings(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh, ema: bool
) -> TrainState:
    """Returns the NamedSharding of every leaf; moments are sharded as their parameter."""
    abstract = jax.eval_shape(lambda k: _create(task, optimizer, k, ema), key)
    return sharding.state_shardings(abstract, mesh)


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh, ema: bool
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without creating it."""
    boxed = jax.eval_shape(lambda k: _create(task, optimizer, k, ema), key)
    return sharding.abstract_arrays(boxed, mesh)


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    accumulated_mean: str = "tokens",
    ema_decay: float = 0.0,
    key: jax.Array,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Returns the pure function (state, batch[, limits]) → (state, metrics) that `train` jits.

    A step whose loss or gradient is not finite changes only the step counter, reports `nonfinite`
    = 1 and adds nothing to the other metrics; the loop decides what happens next. With `limits`,
    float32 [2], a finite step also changes only the counter if its loss is above the first limit or
    its gradient norm above the second. It reports `spike` = 1 and adds to all metrics. So does a
    batch whose weights sum to zero, which reports `empty` = 1. The learning rate follows the
    counter in all cases.

    Metrics are (sum, count) pairs, as in Loss. Arguments are those of `jitted_train_step`.
    """

    optimizer = optax.with_extra_args_support(optimizer)  # the rate follows the run's own step

    def train_step(
        state: TrainState, batch: dict, limits: jax.Array | None = None
    ) -> tuple[TrainState, dict]:
        step_key = jax.random.fold_in(key, state.step)
        grads, loss = _gradients(task, state, batch, step_key, accumulation, accumulated_mean)
        # A batch in which no token counts has weight zero, sums of zero, and changes nothing.
        empty = loss.weight == 0
        weight = jnp.where(empty, 1.0, loss.weight)
        grads = jax.tree.map(lambda g: g / weight, grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss.total)
        good = finite & ~empty
        if limits is not None:
            good &= (loss.total / weight <= limits[0]) & (norm <= limits[1])

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else _averaged(state, params, ema_decay)
        new = TrainState(state.step, params, loss.model_state, opt_state, ema)
        new = task.after_update(new, batch, jax.random.fold_in(step_key, 1))
        new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, state)
        new = new.replace(step=state.step + 1)

        one = jnp.ones((), jnp.float32)
        metrics = dict(loss.metrics, loss=(loss.total, loss.weight), gradient_norm=(norm, one))
        for name, part in task.gradient_parts(grads).items():
            metrics[f"gradient_norm/{name}"] = (optax.tree.norm(part), one)
        metrics = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), metrics)
        metrics["nonfinite"] = (1.0 - finite.astype(jnp.float32), one)
        metrics["empty"] = (empty.astype(jnp.float32), one)
        if limits is not None:
            metrics["spike"] = ((finite & ~empty & ~good).astype(jnp.float32), one)
        return new, metrics

    return train_step


def _averaged(state: TrainState, params: Tree, ema_decay: float) -> Tree:
    """Moves the average towards these params; with a low decay at first, or it would keep the
    initial noise for long."""
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(lambda e, p: e * decay + p * (1.0 - decay), state.ema, params)


def jitted_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    *,
    accumulation: int = 1,
    accumulated_mean: str = "tokens",
    ema_decay: float = 0.0,
    key: jax.Array,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Jits `make_train_step` for a mesh; `train` calls the result and `emu3_jax.aot` lowers it.

    The state is donated, and the new state keeps its shardings. Metrics are replicated, so that
    every process can read them.

    Args:
      task, optimizer: the task, and the transformation of its `Task.optimizer`.
      state: the state or its `abstract_state`; only the shardings of its leaves are read.
      mesh: the mesh of the state.
      accumulation: micro-batches per update; must divide the rows of the batch.
      accumulated_mean: as in `RunConfig`.
      ema_decay: decay of the averaged weights, if the state has them.
      key: base key; each step folds in its number.
    """
    step = make_train_step(
        task,
        optimizer,
        accumulation=accumulation,
        accumulated_mean=accumulated_mean,
        ema_decay=ema_decay,
        key=key,
    )
    layout = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))


def _gradients(
    task: Task, state: TrainState, batch: dict, key, accumulation: int, accumulated_mean: str
):
    """Returns (gradients of `total`, Loss), both summed over `accumulation` micro-batches."""

    def total(params, model_state, microbatch, micro_key):
        loss = task.loss(params, model_state, microbatch, micro_key, state.step)
        if accumulated_mean == "micro_batches":
            loss = _mean_of_its_own(loss)
        return loss.total, loss

    if accumulation == 1:
        return jax.grad(total, has_aux=True)(state.params, state.model_state, batch, key)

    def split(x):
        if x.shape[0] % accumulation:
            raise ValueError(
                f"run.accumulation={accumulation} micro-batches cannot be made of "
                f"{x.shape[0]} rows: the batch must be a multiple of it"
            )
        # Micro-batch i of n gets rows i, i + n, …: every device keeps a share of each.
        return jnp.moveaxis(x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 1, 0)

    # The backward pass adds to these in place, layer by layer: the whole gradient of a micro-batch
    # never exists beside the sum.
    sums = jax.tree.map(lambda p: jax.new_ref(jnp.zeros_like(p)), state.params)

    def body(loss, inputs):
        microbatch, index = inputs
        rest = (loss.model_state, microbatch, jax.random.fold_in(key, index))
        value, backward, new = jax.vjp(lambda p: total(p, *rest), state.params, has_aux=True)
        backward.with_refs(sums)(jnp.ones_like(value))
        added = jax.tree.map(jnp.add, loss[:3], new[:3])
        return Loss(*added, new.model_state), None

    microbatches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], microbatches)
    _, abstract = jax.eval_shape(total, state.params, state.model_state, first, key)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract[:3])
    start = Loss(*zeros, state.model_state)
    loss, _ = jax.lax.scan(body, start, (microbatches, jnp.arange(accumulation)))
    return jax.tree.map(jax.freeze, sums), loss


def _mean_of_its_own(loss: Loss) -> Loss:
    """The loss of a micro-batch as one mean of weight 1, or 0 if none of its tokens counts."""
    counts = loss.weight > 0
    mean = loss.total / jnp.where(counts, loss.weight, 1.0)
    return loss._replace(total=mean, weight=counts.astype(jnp.float32))
