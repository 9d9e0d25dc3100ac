"""Train: python -m emu3_jax.train --config=configs/FILE.py --workdir=DIR [--config.KEY=VALUE ...]

Trains the task that the config names (task: pretrain or vision_tokenizer) on every device that
JAX sees, and writes into the run directory:
  config.json        the resolved config
  metrics.jsonl      one line a log step (also TensorBoard; Weights & Biases by config.log)
  checkpoints/STEP   state and data position
Running the same command again goes on from the newest checkpoint. SIGTERM and Ctrl-C save first.
"""

from absl import flags

from emu3_jax import command_line
from emu3_jax.config import ConfigError, to_dataclass
from emu3_jax.evaluate.during_training import EvaluationCallback, EvaluationConfig
from emu3_jax.evaluate.loading import load_vision_tokenizer
from emu3_jax.interop.bundle import assemble, save_language
from emu3_jax.train import run_directory, start, tasks
from emu3_jax.train.loop import RunConfig, train

command_line.define_config(help_text="What to train; see configs/. Override: --config.a.b=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory, made if it does not exist.")
ALLOW_CHANGES = flags.DEFINE_bool(
    "allow_changes", False, "Resume although the config differs from the one the run began with."
)


def evaluation_callbacks(config, task, workdir: str) -> list[EvaluationCallback]:
    """What `config.evaluation` asks for; an absent section or no evaluators give none."""
    if "evaluation" not in config:
        return []
    evaluation = to_dataclass(EvaluationConfig, config.evaluation, "evaluation")
    if not evaluation.evaluators:
        return []
    if config.task == "vision_tokenizer":

        def subject_of(state, label):
            variables = {
                "params": state.evaluation_params(),
                "batch_stats": state.model_state["batch_stats"],
            }
            return evaluation.subject((task.model, variables), None, label)

    else:
        path = evaluation.vision_tokenizer
        vision = load_vision_tokenizer(path) if path else None

        def subject_of(state, label):
            variables = {"params": state.evaluation_params()}
            bundle = assemble(task.model, variables, task.language(), where=label)
            return evaluation.subject(vision, bundle, label)

    return [EvaluationCallback(evaluation, subject_of, workdir)]


def main() -> None:
    """Resolves the config, builds the task, trains."""
    config, workdir = flags.FLAGS.config, WORKDIR.value
    if config is None or workdir is None:
        raise ConfigError("--config and --workdir are needed; see --help")
    if "run" not in config:
        raise ConfigError("the config has no section run; see configs/ for examples")
    run = to_dataclass(RunConfig, config.run, "run")
    task = tasks.make_task(config, run)
    begin = start.make_start(config, task)
    run_directory.claim(config, workdir, ALLOW_CHANGES.value)
    if config.task == "pretrain":
        save_language(workdir, task.language())
    train(
        task,
        run,
        workdir,
        callbacks=evaluation_callbacks(config, task, workdir),
        start=begin,
        run_config=config.to_dict(),
    )


if __name__ == "__main__":
    command_line.run(main, __doc__)
