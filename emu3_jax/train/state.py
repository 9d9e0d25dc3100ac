"""The training state, and the one function that advances it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emu3_jax import sharding
from emu3_jax.models.cpu import options_to_run_once
from emu3_jax.train.optimizer import OptimizerConfig

Tree = Any


class Loss(NamedTuple):
    """What a task's loss returns for one (micro)batch.

    The loss that is minimised is total / weight, summed over micro-batches before the division,
    so that accumulation over unequal micro-batches equals the whole batch exactly.

    Attributes:
      total: float32 scalar, weighted sum of losses.
      weight: float32 scalar, sum of weights.
      metrics: name → (sum, count), float32 scalars; reported as sum / count.
      model_state: the collections other than "params" after the call (BatchNorm statistics…).
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    model_state: Tree


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
      step: int32 scalar, number of updates done.
      params: trained weights, in the master dtype.
      model_state: collections that are not trained by gradients.
      opt_state: optax state, sharded as the parameters.
      ema: moving average of the parameters in float32, or None.
    """

    step: jax.Array
    params: Tree
    model_state: Tree
    opt_state: Tree
    ema: Tree | None

    def evaluation_params(self) -> Tree:
        """The averaged weights where they are kept, else the trained ones."""
        return self.params if self.ema is None else self.ema


class Task(Protocol):
    """What the loop needs to know about a thing that is trained.

    Attributes:
      unit: what throughput counts ("tokens", "frames").
      note: what a run says when it begins, beside its sizes; "" for nothing.
    """

    unit: str
    note: str

    def init(self, key: jax.Array) -> Tree:
        """Returns variables {"params": …, other collections}, boxed with logical axis names."""

    def optimizer(
        self, config: OptimizerConfig, steps: int
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The transformation of the params' gradients, and the learning rate that is reported."""

    def loss(
        self, params: Tree, model_state: Tree, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Pure function of its arguments; called inside jit. `step`: int32, updates done so far."""

    def gradient_parts(self, gradients: Tree) -> dict[str, Tree]:
        """What of the gradient has its norm logged apart, as gradient_norm/<name>; {}: nothing."""

    def after_update(self, state: TrainState, batch: dict, key: jax.Array) -> TrainState:
        """Pure hook after the optimizer (for instance dead-code revival); inside jit."""

    def batches(self, mesh: Mesh):
        """Iterator over numpy batches with get_state() and set_state(JSON-able).

        Where it holds processes or threads, it has close() as well.
        """

    def batch_shardings(self, mesh: Mesh) -> Any:
        """A sharding for all arrays of a batch, or one for each."""

    def abstract_batch(self, mesh: Mesh) -> Any:
        """Shapes, dtypes and shardings of a global batch, read from no data.

        ValueError for a mesh that the model or the batch does not fit.
        """

    def tokens_per_batch(self) -> int:
        """Work in one batch, in `unit`s, for the throughput line."""

    def flops_per_unit(self) -> float:
        """Model FLOPs of one `unit`, forward and backward."""


def init_state(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh, ema: bool
) -> TrainState:
    """Creates the state directly in its shards: no device ever holds a whole large tensor."""
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
    """The moving average before the first step: a float32 copy, since small steps would be lost
    in fewer digits."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def state_shardings(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh, ema: bool
) -> TrainState:
    """The NamedSharding of every leaf; moments follow their parameter by its axis names."""
    abstract = jax.eval_shape(lambda k: _create(task, optimizer, k, ema), key)
    return sharding.state_shardings(abstract, mesh)


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh, ema: bool
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without creating it."""
    boxed = jax.eval_shape(lambda k: _create(task, optimizer, k, ema), key)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        jax.tree.map(_content, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)),
        sharding.state_shardings(boxed, mesh),
    )


def _content(leaf):
    """What a box holds; `nn.unbox` would ask the mesh to lay it out, and here are only shapes."""
    return leaf.unbox(apply_constraint=False) if isinstance(leaf, nn.meta.AxisMetadata) else leaf


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    key: jax.Array,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Returns the pure function (state, batch[, limits]) → (state, metrics) that `train` jits.

    A step whose loss or gradient is not finite changes nothing but the step counter, reports
    `nonfinite` = 1 and counts in no other metric; what happens then is the loop's policy.
    With `limits`, float32 [2], a finite step whose loss is above the first or whose gradient norm
    is above the second changes nothing either; it reports `spike` = 1, and counts.

    Metrics are (sum, count) pairs, as in Loss.
    """

    def train_step(
        state: TrainState, batch: dict, limits: jax.Array | None = None
    ) -> tuple[TrainState, dict]:
        step_key = jax.random.fold_in(key, state.step)
        grads, loss = _gradients(task, state, batch, step_key, accumulation)
        grads = jax.tree.map(lambda g: g / loss.weight, grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss.total)
        good = finite
        if limits is not None:
            good &= (loss.total / loss.weight <= limits[0]) & (norm <= limits[1])

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # The average follows quickly at first, or it would remember the initial noise.
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
            ema = jax.tree.map(lambda e, p: e * decay + p * (1.0 - decay), ema, params)
        new = TrainState(
            step=state.step,
            params=params,
            model_state=loss.model_state,
            opt_state=opt_state,
            ema=ema,
        )
        new = task.after_update(new, batch, jax.random.fold_in(step_key, 1))
        new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, state)
        new = new.replace(step=state.step + 1)

        one = jnp.ones((), jnp.float32)
        metrics = dict(loss.metrics, loss=(loss.total, loss.weight), gradient_norm=(norm, one))
        for name, part in task.gradient_parts(grads).items():
            metrics[f"gradient_norm/{name}"] = (optax.tree.norm(part), one)
        metrics = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), metrics)
        metrics["nonfinite"] = (1.0 - finite.astype(jnp.float32), one)
        if limits is not None:
            metrics["spike"] = ((finite & ~good).astype(jnp.float32), one)
        return new, metrics

    return train_step


def jitted_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    *,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    key: jax.Array,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """`make_train_step` as it runs on a mesh; what `train` calls and `emu3_jax.aot` compiles.

    The new state takes the memory of the old one and stays laid out as it came, whatever the
    compiler would choose. Metrics are whole on every process, so that each can read them.

    Args:
      task, optimizer, accumulation, ema_decay, key: see make_train_step.
      state: the state or its `abstract_state`; only the shardings of its leaves are read.
      mesh: where the state is.
    """
    step = make_train_step(task, optimizer, accumulation=accumulation, ema_decay=ema_decay, key=key)
    layout = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))


def _gradients(task: Task, state: TrainState, batch: dict, key, accumulation: int):
    """Summed gradients of `total` and the summed Loss over `accumulation` micro-batches."""

    def total(params, model_state, microbatch, micro_key):
        loss = task.loss(params, model_state, microbatch, micro_key, state.step)
        return loss.total, loss

    if accumulation == 1:
        return jax.grad(total, has_aux=True)(state.params, state.model_state, batch, key)

    def split(x):
        if x.shape[0] % accumulation:
            raise ValueError(
                f"run.accumulation={accumulation} micro-batches cannot be made of "
                f"{x.shape[0]} rows: the batch must be a multiple of it"
            )
        # Rows are dealt out in turn, so every device keeps a share of every micro-batch.
        return jnp.moveaxis(x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 1, 0)

    # The backward pass adds to these where they lie, layer by layer: no micro-batch's gradient is
    # ever held whole beside the sum.
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
    abstract = jax.eval_shape(
        lambda p, m, b: task.loss(p, m, b, key, state.step), state.params, state.model_state, first
    )
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract[:3])
    start = Loss(*zeros, state.model_state)
    loss, _ = jax.lax.scan(body, start, (microbatches, jnp.arange(accumulation)))
    return jax.tree.map(jax.freeze, sums), loss
