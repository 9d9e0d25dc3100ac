"""Any task of a language model with low-rank adapters: the section `lora` of its config.

`with_lora` makes a subclass of the task's class. Its params are the adapters; what were the params
before is a collection beside them that is neither trained nor checkpointed. Everything that the
task itself does gets the weights that it knows: its loss runs where adapters are in effect
(`models.language.lora.adapting`), and the model that is evaluated and exported is merged.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
from etils import epath

from emu3_jax.config import ConfigError
from emu3_jax.files import read_json, write_json
from emu3_jax.interop import exporting
from emu3_jax.interop.language import peft
from emu3_jax.models.language import int8, lora
from emu3_jax.models.language.lora import LoraConfig
from emu3_jax.train.task import Loss, Task
from emu3_jax.train.tasks.language import frozen_base

FROZEN = "frozen"  # the collection of the weights that are not trained
ADAPTERS = "adapters"  # they lie beside the merged model in `LoraTask.model_variables`
BASE_FILE = "lora_base.json"


@functools.cache
def with_lora(task: type[Task]) -> type[Task]:
    """Returns the class of a task with adapters; ConfigError if it trains no language model."""
    if task.kind != exporting.LANGUAGE_MODEL:
        raise ConfigError(
            "config.lora goes with tasks that train a language model; "
            f"{task.__name__} trains a {task.kind.replace('_', ' ')}"
        )
    parts = {"_task": task, "Config": _config(task.Config)}
    return type(f"Lora{task.__name__}", (LoraTask, task), parts)


@functools.cache
def _config(config: type) -> type:
    """Returns the dataclass of a task's config with the section `lora`."""
    made = dataclasses.make_dataclass(
        f"Lora{config.__name__}",
        [("lora", LoraConfig, dataclasses.field(kw_only=True))],
        bases=(config,),
        frozen=True,
        # A class made here is found by no name; see `_unpickled_config`.
        namespace={"__reduce__": lambda self: (_unpickled_config, (config, _fields(self)))},
    )
    made.__doc__ = "Attributes:\n  lora: which weights get adapters; all others are frozen.\n"
    return made


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _unpickled_config(config: type, fields: dict[str, Any]) -> Any:
    return _config(config)(**fields)


def _unpickled_task(task: type[Task], attributes: dict[str, Any]) -> Task:
    made = object.__new__(with_lora(task))
    made.__dict__.update(attributes)
    return made


class LoraTask(Task):
    """The methods that adapters change; `with_lora` puts this before a task's class.

    Attributes:
      fingerprint: of the frozen weights; None until they are there.
    """

    _task: type[Task]
    fingerprint: str | None = None
    # (where it is stated, fingerprint that the frozen weights must have); of a run that has begun.
    _expected: tuple[str, str] | None = None

    def __init__(self, config: Any, read_data: bool = True):
        super().__init__(config, read_data)
        self.unsaved = (*self.unsaved, FROZEN)
        key, init = jax.random.key(0), super().init
        with lora.adapting(config.lora):
            variables = jax.eval_shape(init, key)
        lora.check(config.lora, nn.unbox(variables["params"]))
        self._int8 = int8.linear_layers(lambda: init(key)) if config.lora.base else {}

    def __reduce__(self):
        return _unpickled_task, (self._task, self.__dict__)

    @classmethod
    def from_run(cls, config: Any, run_directory: os.PathLike) -> Task:
        """Also reads which weights the run's adapters belong to.

        The model that is loaded is that of the base as its files have it: int8 saves memory in
        training alone.
        """
        config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, base=""))
        task = super().from_run(config, run_directory)
        task._expect(run_directory)
        return task

    def init(self, key: jax.Array) -> dict:
        """Returns the task's variables: adapters as params, the others as FROZEN.

        Kernels that are stored as int8 are zero until `initial_weights`.
        """
        # Twice, so that a copy of the weights among the variables (a reference) has no adapters in
        # it; the compiler leaves out what is not used.
        variables = dict(super().init(key))
        frozen = int8.zeros(variables.pop("params"), self._int8)
        with lora.adapting(self.config.lora):
            adapters, _ = lora.split(super().init(key)["params"])
        rows = lora.row_adapters(self.config.lora, self.config.model.hidden_size)
        return {**variables, "params": lora.beside(adapters, rows), FROZEN: frozen}

    def initial_weights(self) -> Callable[[dict], dict] | None:
        """Returns the task's own weights as the frozen ones, with the adapters of `lora.start`."""
        begin = super().initial_weights()
        if begin is None:
            raise ConfigError(
                "config.lora trains adapters beside the weights of a trained model; name it in "
                "start.transformer"
            )
        start = getattr(self.config, "start", None)
        shared, ids = getattr(start, "shared_ids", None), self.config.model.vocab_size
        if shared is not None and 0 <= shared < ids:
            raise ConfigError(
                f"start.shared_ids is {shared}: the vectors of the other ids would be random and, "
                "with config.lora, stay so; set it to -1, which takes all of them"
            )
        # A run that has begun has adapters of its own.
        stored = self._stored_adapters() if self._expected is None else None

        def replace(variables: dict) -> dict:
            variables, model = dict(variables), self.config.model
            adapters, frozen = variables["params"], variables.pop(FROZEN)
            base = frozen_base.read(begin, variables, frozen, model.param_dtype, model.vocab_size)
            self.fingerprint = base.fingerprint
            self._check_base(stored)
            if stored is not None:
                rows = lora.row_differences(self.config.lora, base.weights, stored.vectors)
                adapters = lora.beside(adapters, lora.beside(stored.adapters, rows))
            return {**base.others, "params": adapters, FROZEN: base.weights}

        return replace

    def _stored_adapters(self) -> peft.PeftAdapter | None:
        """Reads `lora.start`; ConfigError if these are not the adapters of this config."""
        config = self.config.lora
        if not config.start:
            return None
        stored = peft.load(config.start, self.config.model)
        problems = [
            f"{name} is {getattr(stored, name)!r}, lora.{name} is {getattr(config, name)!r}"
            for name in ("rank", "alpha", "rslora", "rows")
            if getattr(stored, name) != getattr(config, name)
        ]
        wanted = nn.unbox(jax.eval_shape(self.init, jax.random.key(0))["params"])
        have, want = _adapted(stored.adapters), _adapted(wanted)
        if have != want:
            problems.append(f"it adapts {', '.join(have)}, lora.targets name {', '.join(want)}")
        if problems:
            raise ConfigError(f"lora.start={config.start}: {'; '.join(problems)}")
        return stored

    def _check_base(self, stored: peft.PeftAdapter | None) -> None:
        """ValueError if the adapters of a run or of `lora.start` are of another base."""
        expected = self._expected
        if stored is not None and stored.base:
            expected = (self.config.lora.start, stored.base)
        if expected and expected[1] != self.fingerprint:
            raise ValueError(
                f"{expected[0]}: its adapters belong to a base with the fingerprint "
                f"{expected[1]}, the weights to start from have {self.fingerprint}"
            )

    def _expect(self, run_directory: os.PathLike) -> None:
        stated = read_json(epath.Path(run_directory) / BASE_FILE)
        self._expected = (os.fspath(run_directory), stated["fingerprint"])

    def save_beside(self, run_directory: os.PathLike) -> None:
        """Also writes which weights are frozen."""
        super().save_beside(run_directory)
        write_json(epath.Path(run_directory) / BASE_FILE, {"fingerprint": self.fingerprint})

    def check_beside(self, run_directory: os.PathLike) -> None:
        """Also reads which weights must be frozen; they are checked when they are read."""
        super().check_beside(run_directory)
        self._expect(run_directory)

    def loss(
        self, params: Any, model_state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Returns the task's loss, where adapters are in effect."""
        model_state = dict(model_state)
        frozen = model_state.pop(FROZEN)
        # The last one is called by the first, in place of the layer.
        with lora.adapting(self.config.lora), int8.reading():
            weights = lora.joined(self.config.lora, frozen, params)
            loss = super().loss(weights, model_state, batch, key, step)
        return loss._replace(model_state={**loss.model_state, FROZEN: frozen})

    def gradient_parts(self, gradients: Any) -> dict[str, Any]:
        """Returns nothing: the parts that the task knows are not trained."""
        del gradients
        return {}

    def model_parts(self, variables: dict) -> dict:
        """Returns the adapters, and what the task's model has of the other weights."""
        variables = dict(variables)
        adapters = variables.pop("params")
        parts = dict(super().model_parts({**variables, "params": variables.pop(FROZEN)}))
        return {"params": adapters, FROZEN: parts.pop("params"), **parts}

    def model_variables(self, parts: dict) -> dict:
        """Returns the task's model with merged weights, and the ADAPTERS beside it."""
        parts = dict(parts)
        adapters = parts.pop("params")
        frozen = int8.dequantized(parts.pop(FROZEN), self.config.model.param_dtype)
        merged = lora.merged(self.config.lora, frozen, adapters)
        return {**super().model_variables({**parts, "params": merged}), ADAPTERS: adapters}

    def trained_model(self, variables: dict, label: str) -> Any:
        """Returns the merged model."""
        return super().trained_model(_model(variables), label)

    def export(
        self, folder: os.PathLike, variables: dict, options: exporting.ExportOptions
    ) -> None:
        """Writes the merged model, or for the layout "peft" the adapters alone."""
        if options.layout != exporting.PEFT:
            super().export(folder, _model(variables), options)
            return
        peft.save(
            folder,
            self.config.model,
            self.config.lora,
            variables[ADAPTERS],
            lora.row_vectors(self.config.lora, variables["params"]),
            base_model=getattr(getattr(self.config, "start", None), "transformer", ""),
            fingerprint=self.fingerprint or "",
        )

    def flops_per_unit(self) -> float:
        """Returns the task's FLOPs without those of gradients of frozen matrices."""
        shapes = nn.unbox(jax.eval_shape(self.init, jax.random.key(0)))
        frozen = flax.traverse_util.flatten_dict(shapes[FROZEN])
        matrices = sum(x.size for path, x in frozen.items() if path[-1] == "kernel")
        return super().flops_per_unit() - 2.0 * matrices


def _adapted(adapters: dict) -> list[str]:
    flat = flax.traverse_util.flatten_dict(adapters)
    return sorted("/".join(path[:-1]) for path in flat if path[-1] == lora.A)


def _model(variables: dict) -> dict:
    return {name: part for name, part in variables.items() if name != ADAPTERS}
