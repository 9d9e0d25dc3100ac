"""Train: python -m emu3_jax.train --config=NAME|FILE.py --workdir=DIR [--config.KEY=VALUE ...]

Trains the task that the config names (task: pretrain, dpo, grpo, …) on all devices that JAX
finds, and writes into the run directory:
  config.json        the resolved config: every field, defaults included
  starts.jsonl       one line per start: command, code revision, package versions, devices
  metrics.jsonl      one line per log step (also TensorBoard; Weights & Biases by config.run.log)
  goodput.jsonl      where the time went
  heartbeat.json     the last step and its time
  checkpoints/STEP   state and data position
Run the same command again to resume from the newest checkpoint. SIGTERM and Ctrl-C save first and
exit with 143 and 130; a finished run exits with 0.
A command that ends in an error before the first step leaves the run directory unchanged.

--print_config prints the resolved config and exits. --help --config=NAME lists only the keys of
that config's task.

On a pod every host runs this command with --coordinator=auto; elsewhere each process gets
--coordinator=HOST:PORT --processes=N --process=I. All processes need the same run directory.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from emu3_jax import command_line, sharding
from emu3_jax.config import ConfigError, to_values
from emu3_jax.config import help as config_help
from emu3_jax.evaluate import registry
from emu3_jax.evaluate.during_training import EvaluationCallback, check_data
from emu3_jax.evaluate.evaluator import Evaluator, Subject
from emu3_jax.interop.exporting import LANGUAGE_MODEL
from emu3_jax.models.language.lora import LoraConfig
from emu3_jax.train.loop import Callback, train
from emu3_jax.train.run import distributed, run_directory
from emu3_jax.train.run.checkpoint import has_checkpoints
from emu3_jax.train.run.goodput import Ledger
from emu3_jax.train.run.interruption import Interruption
from emu3_jax.train.run.lock import RunLock
from emu3_jax.train.task import Task, TrainState
from emu3_jax.train.tasks import registry as tasks

command_line.define_config(help_text="What to train; see configs/. Override: --config.a.b=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; created if missing.")
distributed.define_flags()
ALLOW_CHANGES = flags.DEFINE_bool(
    "allow_changes", False, "Resume even if the config differs from the one the run began with."
)
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the resolved config and exit.")


def resolve(values: dict) -> tuple[Any, tuple[Evaluator, ...]]:
    """Returns (resolved config, evaluators of its entries) from the values of a config file."""
    config = tasks.resolve(values)
    evaluators = registry.make(config.evaluation)
    return dataclasses.replace(config, evaluation=registry.resolved(evaluators)), evaluators


def evaluation_callbacks(
    task: Task, evaluators: Sequence[Evaluator], workdir: str
) -> list[Callback]:
    """Returns one callback per evaluator; ConfigError if one does not fit the run."""
    language = task.language if task.kind == LANGUAGE_MODEL else None
    check_data(evaluators, task.kind, language)

    def subject_of(state, label):
        variables = {"params": state.evaluation_params(), **state.model_state}
        variables = task.model_variables(task.model_parts(variables))
        return Subject(**{task.kind: task.trained_model(variables, label)}, label=label)

    return [EvaluationCallback(evaluator, subject_of, workdir) for evaluator in evaluators]


def train_config(
    config: ConfigDict,
    workdir: str,
    allow_changes: bool = False,
    ledger: Ledger | None = None,
    interruption: Interruption | None = None,
) -> TrainState | None:
    """Builds the task and trains; writes the run directory only after all checks have passed.

    Returns:
      As `loop.train`: the last state, or None if the run was interrupted.
    """
    with contextlib.ExitStack() as resources:
        lock = RunLock(workdir)
        if distributed.is_first():
            resources.enter_context(lock)
        return _train_locked(
            config, workdir, allow_changes, ledger=ledger, interruption=interruption,
            before_save=lock.check if distributed.is_first() else lambda: None,
        )  # fmt: skip


def _train_locked(
    config: ConfigDict, workdir: str, allow_changes: bool, **arguments
) -> TrainState | None:
    """`train_config`, where no other process writes to the directory."""
    config, evaluators = resolve(config.to_dict())
    run_directory.check(config, workdir, allow_changes)
    task = tasks.make(config)
    if has_checkpoints(workdir):
        task.check_beside(workdir)
    with jax.set_mesh(sharding.make_mesh(config.run.mesh)):  # evaluators load there too
        callbacks = evaluation_callbacks(task, evaluators, workdir)

    def write_run_directory():
        if not distributed.is_first():
            return
        run_directory.claim(config, workdir, allow_changes)
        run_directory.record_start(workdir)
        task.save_beside(workdir)

    return train(
        task,
        config.run,
        workdir,
        callbacks=callbacks,
        run_config=to_values(config),
        on_begin=write_run_directory,
        allow_changes=allow_changes,
        **arguments,
    )


def usage(config: ConfigDict | None) -> str:
    """Returns the text of --help with every key of every task, or of the config's task only."""
    named = tasks.TASKS if config is None else [config.get("task")]
    found = {name: tasks.find(name) for name in named}
    measuring = {
        name: evaluator
        for name, evaluator in registry.EVALUATORS.items()
        if evaluator.measures in {task.kind for task in found.values()}
    }
    return "\n\n".join([
        f"{__doc__}\nKeys of the config (default), set with --config.KEY=VALUE. Sections of a\n"
        "list are numbered from N = 0, and are those that the config file has.",
        config_help.listing({n: task.Config for n, task in found.items()}, "task"),
        "Any task of a language model has the section lora, which freezes all but adapters:",
        config_help.listing({tasks.LORA: LoraConfig}, prefix=f"{tasks.LORA}."),
        "Entries of evaluation, each with the key evaluator, one of these names, and:",
        config_help.listing(measuring, "evaluator", "evaluation.N."),
    ])  # fmt: skip


def main() -> None:
    """Resolves the config, joins the other processes if there are any, and trains."""
    ledger = Ledger()
    config, workdir = flags.FLAGS.config, WORKDIR.value
    if config is not None and PRINT_CONFIG.value:
        print(json.dumps(to_values(resolve(config.to_dict())[0]), indent=1))
        return
    if config is None or workdir is None:
        raise ConfigError("--config and --workdir are needed; see --help")
    with distributed.joined():
        interruption = Interruption()
        state = train_config(config, workdir, ALLOW_CHANGES.value, ledger, interruption)
    if state is None:
        # Not 0: a scheduler would count the run as finished.
        sys.exit(interruption.exit_code)


if __name__ == "__main__":
    command_line.run(main, usage)
