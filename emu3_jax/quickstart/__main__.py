"""The whole system on a CPU: python -m emu3_jax.quickstart [--directory=runs/quickstart]

Unpacks the embedded emoji corpus, tokenizes it with the shipped vision tokenizer, pretrains a nano
transformer from scratch over a mesh of two CPU devices, interrupts that training once and resumes
it, evaluates, samples, and writes report.html. Run it again after a stop: finished work is kept.
"""

import pathlib

from emu3_jax.config import load_config
from emu3_jax.files import write_json
from emu3_jax.pipeline import command
from emu3_jax.pipeline.runner import Runner, locked
from emu3_jax.quickstart import stages
from emu3_jax.quickstart.stages import Plan

# Stages: unpacking, tokenizing, two parts of training, evaluation of the tokenizer, and the report;
# for each model an evaluation and three kinds of samples.
FIXED_STAGES = 6
STAGES_PER_MODEL = 4


def run(plan: Plan, say=print) -> pathlib.Path:
    """Runs all unfinished stages; returns the path of the report.

    Raises:
      ValueError: an input is missing, a stage failed, or another process is running there.
      Stopped: a signal arrived.
    """
    plan.check()
    config = load_config(f"{plan.config}:{plan.directory}")
    # A little before the middle, so that most of the curve comes after the resumption.
    interrupt_at = max(1, (plan.steps or config.run.steps) * 2 // 5)
    total = FIXED_STAGES + STAGES_PER_MODEL * len(plan.models())
    with locked(plan.directory) as lock:
        runner = Runner(plan.directory, lock, say)
        first = stages.preparation(plan) + stages.training(plan, interrupt_at)
        runner.run(first, 1, total)
        items = stages.choose_items(plan.corpus, plan)
        write_json(plan.items, items)
        second = stages.evaluation(plan) + stages.sampling(plan, items)
        runner.run(second, 1 + len(first), total)
        everything = [*first, *second]
        runner.run([stages.reporting(plan, everything)], 1 + len(everything), total)
    return plan.report


def main() -> None:
    """Reads the command line and runs."""
    parser = command.parser("emu3_jax.quickstart", __doc__, Plan.directory)
    parser.add_argument(
        "--steps", type=int, default=0, help="training steps (default: the config's)"
    )
    parser.add_argument("--limit", type=int, default=Plan.limit,
                        help="items of a split to evaluate on (%(default)s)")  # fmt: skip
    arguments = parser.parse_args()
    plan = Plan(directory=arguments.directory, steps=arguments.steps, limit=arguments.limit)
    command.run(arguments, lambda say: run(plan, say))


if __name__ == "__main__":
    main()
