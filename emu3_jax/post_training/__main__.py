"""Post-training on a CPU: python -m emu3_jax.post_training [--directory=runs/post_training]

From the shipped nano model: a model that answers questions about emoji and coloured shapes
(supervised tuning, also with adapters and from random weights), and one that draws better (quality
fine-tuning, candidates judged by the model's own reading, preference tuning). Measures all of them
on held-out data, also for what they unlearnt, and writes report.html. Run it again after a stop:
finished work is kept. The figures in docs/reference/measurements.md are of longer runs,
by the options below.
"""

import dataclasses
import pathlib

from emu3_jax.pipeline import command
from emu3_jax.pipeline.runner import Runner, locked
from emu3_jax.post_training import stages
from emu3_jax.post_training.stages import Plan

LENGTHS = {
    "chat_steps": "steps of each training on questions",
    "qft_steps": "steps of quality fine-tuning",
    "prompts": "captions for which candidates are drawn",
    "dpo_steps": "steps of preference tuning",
    "limit": "items of a split that models are evaluated on; 0 for all",
    "questions": "questions of a split that are asked; 0 for all",
}


def run(plan: Plan, say=print) -> pathlib.Path:
    """Runs all unfinished stages; returns the path of the report.

    Raises:
      ValueError: an input is missing, a stage failed, or another process is running there.
      Stopped: a signal arrived.
    """
    first = stages.all_stages(plan)
    total = len(first) + len(stages.DRAWN) + 1
    with locked(plan.directory) as lock:
        runner = Runner(plan.directory, lock, say)
        runner.run(first, 1, total)
        second = stages.sampling(plan, stages.held_out_captions(plan.corpus, plan.shown))
        runner.run(second, 1 + len(first), total)
        everything = [*first, *second]
        runner.run([stages.reporting(plan, everything)], total, total)
    return plan.report


def main() -> None:
    """Reads the command line and runs."""
    parser = command.parser("emu3_jax.post_training", __doc__, Plan.directory)
    for name, meaning in LENGTHS.items():
        default = getattr(Plan, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--easy_vqa", default="", help="data folder of easy-vqa, if not installed")
    arguments = parser.parse_args()
    names = {field.name for field in dataclasses.fields(Plan)}
    chosen = {name: value for name, value in vars(arguments).items() if name in names}
    command.run(arguments, lambda say: run(Plan(**chosen), say))


if __name__ == "__main__":
    main()
