"""Train: python -m emu3_jax.train --config=configs/FILE.py --workdir=DIR [--config.KEY=VALUE ...]

Trains the task that the config names (task: pretrain or vision_tokenizer) on every device that
JAX sees, and writes into the run directory:
  config.json        the resolved config
  starts.jsonl       one line a start: command, code revision, package versions, devices
  metrics.jsonl      one line a log step (also TensorBoard; Weights & Biases by config.log)
  goodput.jsonl      where the time went
  heartbeat.json     the last step and when it was
  checkpoints/STEP   state and data position
Running the same command again goes on from the newest checkpoint. SIGTERM and Ctrl-C save first and
end with 143 and 130; a finished run ends with 0.
A command that is refused leaves the run directory as it was.

On a pod every host runs this command with --coordinator=auto; elsewhere each process gets
--coordinator=HOST:PORT --processes=N --process=I. The run directory is one that all can see.
"""

import sys

import jax
from absl import flags
from ml_collections import ConfigDict

from emu3_jax import command_line
from emu3_jax.config import ConfigError, to_dataclass
from emu3_jax.evaluate import registry
from emu3_jax.evaluate.during_training import EvaluationCallback, check_data
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.interop.bundle import assemble, save_language
from emu3_jax.train import distributed, run_directory, start, tasks
from emu3_jax.train.goodput import Ledger
from emu3_jax.train.interruption import Interruption
from emu3_jax.train.loop import RunConfig, train
from emu3_jax.train.state import TrainState
from emu3_jax.train.vision_objective import tokenizer_params

command_line.define_config(help_text="What to train; see configs/. Override: --config.a.b=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory, made if it does not exist.")
distributed.define_flags()
ALLOW_CHANGES = flags.DEFINE_bool(
    "allow_changes", False, "Resume although the config differs from the one the run began with."
)


def evaluation_callbacks(config, task, workdir: str) -> list[EvaluationCallback]:
    """One callback for each entry of `config.evaluation`."""
    evaluators = registry.make(config.get("evaluation", ()))
    language = task.language() if config.task == "pretrain" else None
    check_data(evaluators, language)
    if config.task == "vision_tokenizer":

        def subject_of(state, label):
            variables = {
                "params": tokenizer_params(state.evaluation_params()),
                "batch_stats": state.model_state["batch_stats"],
            }
            return Subject(vision_tokenizer=(task.model, variables), label=label)

    else:

        def subject_of(state, label):
            variables = {"params": state.evaluation_params()}
            bundle = assemble(task.model, variables, language, where=label)
            return Subject(bundle=bundle, label=label)

    def callback(evaluator):
        found = EvaluationCallback(evaluator, subject_of, workdir)
        together = registry.evaluator_name(evaluator) in registry.ON_THE_MESH
        return found if together or jax.process_count() == 1 else _ByEachProcess(found)

    return [callback(evaluator) for evaluator in evaluators]


class _ByEachProcess:
    """Evaluation among several processes: each does it all, on its own devices, with whole weights.

    The results are the same everywhere, and the first process writes them.
    """

    def __init__(self, callback: EvaluationCallback):
        self._callback = callback
        self.every, self.done = callback.every, callback.done

    def __call__(self, step, state, writer) -> dict[str, float]:
        state = distributed.to_this_host(state.replace(opt_state=None))
        with jax.set_mesh(distributed.local_mesh()):
            return self._callback(step, state, writer)


def train_config(
    config: ConfigDict,
    workdir: str,
    allow_changes: bool = False,
    ledger: Ledger | None = None,
    interruption: Interruption | None = None,
) -> TrainState | None:
    """Builds the task, trains; the run directory is written to when nothing can be refused.

    Returns:
      As `loop.train`: the last state, None if the run was interrupted.
    """
    if "run" not in config:
        raise ConfigError("the config has no section run; see configs/ for examples")
    run = to_dataclass(RunConfig, config.run, "run")
    task = tasks.make_task(config, run)
    begin = start.make_start(config, task)
    run_directory.check(config, workdir, allow_changes)

    def write_run_directory():
        if not distributed.is_first():
            return
        run_directory.claim(config, workdir, allow_changes)
        run_directory.record_start(workdir)
        if config.task == "pretrain":
            save_language(workdir, task.language())

    return train(
        task,
        run,
        workdir,
        callbacks=evaluation_callbacks(config, task, workdir),
        start=begin,
        run_config=config.to_dict(),
        on_begin=write_run_directory,
        ledger=ledger,
        interruption=interruption,
        allow_changes=allow_changes,
    )


def main() -> None:
    """Resolves the config, joins the other processes if there are any, and trains."""
    ledger = Ledger()
    config, workdir = flags.FLAGS.config, WORKDIR.value
    if config is None or workdir is None:
        raise ConfigError("--config and --workdir are needed; see --help")
    values = flags.FLAGS
    distributed.initialize(
        values.coordinator, values.processes, values.process, values.host_timeout
    )
    interruption = Interruption()
    try:
        state = train_config(config, workdir, ALLOW_CHANGES.value, ledger, interruption)
    except BaseException as error:
        if jax.distributed.is_initialized():
            distributed.leave(error)
        raise
    if state is None:
        # Not 0: a scheduler would take the run for finished.
        sys.exit(interruption.exit_code)


if __name__ == "__main__":
    command_line.run(main, __doc__)
