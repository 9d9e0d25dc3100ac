"""DPG-Bench: long prompts, judged by yes-or-no questions; arXiv 2403.05135, TencentQQGYLab/ELLA.

Released (commit 3c228f1): dpg_bench/prompts/<id>.txt, 1,065 prompts, and dpg_bench.csv with the
questions, which only the figures need. Four samples a prompt are drawn into samples/, and laid two
by two into grids/<id>.png, which is the scorer's --image-root-path (--pic-num=4 --resolution=<side
of one sample>). Result file: --res-path=NAME.txt, beside which it writes NAME_detail.txt.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from emu3_jax.data import media
from emu3_jax.evaluate.benchmarks.drawing.drawing import (
    DrawingBenchmark,
    Prompt,
    Results,
    check_folder,
    check_prompts,
    check_whole,
    compared,
    given,
    media_in,
)
from emu3_jax.evaluate.benchmarks.drawing.proposition_scores import (
    Answers,
    Proposition,
    read_propositions,
    score,
)

QUESTIONS = "dpg_bench.csv"
SAMPLES = 4
# path, crop (left, top, right, bottom), question and answer.
_LINE = re.compile(r"(.*), \((\d+), (\d+), \d+, \d+\), (.*)")
_PRINTED = re.compile(r"(DPG-Bench score|\t.+): (\S+)")


def read(data: pathlib.Path | None, version: str = "") -> list[Prompt]:
    """The prompts of the folder dpg_bench/ or dpg_bench/prompts/; questions where the csv is."""
    folder = given(data, "the folder dpg_bench/ of ELLA")
    home = folder.parent if folder.name == "prompts" else folder
    files = sorted((home / "prompts").glob("*.txt"))
    questions = {}
    if (home / QUESTIONS).is_file():
        questions = read_propositions(home / QUESTIONS)
        different = sorted(questions.keys() ^ {file.stem for file in files})
        if different:
            raise ValueError(
                f"{home}: {different[0]!r} is only in one of prompts/ and {QUESTIONS}; "
                f"{len(different)} prompts are"
            )
    prompts = []
    for file in files:
        if "." in file.stem:
            raise ValueError(f"{file}: the scorer reads the name up to its first full stop")
        text = file.read_text(encoding="utf-8").strip()
        attributes = {"questions": questions.get(file.stem, ())}
        prompts.append(Prompt(file.stem, text, SAMPLES, attributes=attributes))
    check_prompts(prompts, home / "prompts")
    return prompts


def path(prompt: Prompt, sample: int) -> str:
    """samples/<id>_<sample>.png."""
    return f"samples/{prompt.id}_{sample}.png"


def grid(prompt: Prompt) -> str:
    """The file of the four samples as the scorer takes it."""
    return f"grids/{prompt.id}.png"


def finish(folder: pathlib.Path, prompts: Sequence[Prompt]) -> None:
    """Checks the samples and writes the grids, samples 0 and 1 above 2 and 3."""
    check_folder(folder, prompts, path)
    others = set(media_in(folder / "grids")) - {f"{prompt.id}.png" for prompt in prompts}
    if others:
        raise ValueError(
            f"{folder / 'grids' / min(others)} is of no prompt here, and the scorer would count it"
        )
    for prompt in prompts:
        if prompt.samples != SAMPLES:
            raise ValueError(f"{prompt.id}: a grid has {SAMPLES} samples, not {prompt.samples}")
        images = [media.read_image(folder / path(prompt, index)) for index in range(SAMPLES)]
        shapes = {image.shape for image in images}
        height, width = images[0].shape[:2]
        if len(shapes) > 1 or height != width:
            raise ValueError(
                f"{folder / grid(prompt)}: the scorer cuts squares of one size; the samples are "
                f"{' and '.join(f'{h} x {w}' for h, w, _ in sorted(shapes))} (height x width)"
            )
        rows = [np.concatenate(images[:2], axis=1), np.concatenate(images[2:], axis=1)]
        media.write_png(folder / grid(prompt), np.concatenate(rows, axis=0))


def results(file: pathlib.Path, prompts: Sequence[Prompt], partial: bool = False) -> Results:
    """The figures of the answers in NAME_detail.txt, compared with those that NAME.txt prints.

    What the script says is reproduced. If the answers to the first question of the csv are there
    too, "first_row_kept/…" are the figures without its fault.
    """
    propositions = {prompt.id: prompt.attributes["questions"] for prompt in prompts}
    for name, questions in propositions.items():
        if not questions:
            raise ValueError(f"{name}: the figures need {QUESTIONS} beside the folder prompts/")
    details = file.with_name(f"{file.stem}_detail.txt")
    answers = read_details(details, propositions)
    notes = check_whole(len(answers), len(prompts), "images", details, partial)
    scored = score(propositions, answers)
    asked = {question.row for name in answers for question in propositions[name]}
    figures = dict(scored.figures)
    if 0 in asked and all(
        question.number in crop
        for name, crops in answers.items()
        for question in propositions[name]
        for crop in crops
    ):
        kept = score(propositions, answers, keep_first=True)
        figures |= {f"first_row_kept/{name}": value for name, value in kept.figures.items()}
    notes += [*scored.notes, *compared(figures, _printed(file), file)]
    return Results(scored.scores, figures, notes)


def read_details(
    file: pathlib.Path, propositions: Mapping[str, Sequence[Proposition]]
) -> dict[str, Answers]:
    """The answers in NAME_detail.txt: of each image, crop by crop, number of a question → answer.

    Lines of several processes may alternate; those of a crop are in the order of its questions.
    """
    crops: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for where, name, crop, text in _detail_lines(file):
        if name not in propositions:
            raise ValueError(f"{where}: {name!r} is no image of these prompts")
        crops.setdefault((name, crop), []).append((where, text))
    answers: dict[str, list[dict[int, str]]] = {}
    for (name, _), lines in sorted(crops.items()):
        questions = propositions[name]
        # The script does not ask the first question of the csv.
        if questions[0].row == 0 and not lines[0][1].startswith(f"{questions[0].text}, "):
            questions = questions[1:]
        found = {}
        for index, (where, text) in enumerate(lines):
            question = questions[index] if index < len(questions) else None
            if question is None or not text.startswith(f"{question.text}, "):
                wanted = f"the answer to {question.text!r}" if question else "no further answer"
                raise ValueError(f"{where}: expected {wanted} about {name!r}, found {text!r}")
            found[question.number] = text.removeprefix(f"{question.text}, ")
        answers.setdefault(name, []).append(found)
    return answers


def _detail_lines(file: pathlib.Path) -> Iterator[tuple[str, str, int, str]]:
    """(where, prompt, crop, question and answer) of each line."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; the scorer writes it beside its result file")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if not match:
            raise ValueError(f"{file}:{number}: expected 'path, (crop), question, answer'")
        image, left, top, text = match.groups()
        crop = (int(left) > 0) + 2 * (int(top) > 0)
        yield f"{file}:{number}", pathlib.PurePosixPath(image).name.split(".")[0], crop, text


def _printed(file: pathlib.Path) -> dict[str, float]:
    """The figures at the end of the result file: score, and categories in two levels."""
    printed, level = {}, ""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    for line in text.splitlines():
        if line.endswith("category scores:"):
            level = line[:2].lower()
        elif match := _PRINTED.fullmatch(line):
            name = match[1].strip()
            key = "dpg_score" if match[1] == "DPG-Bench score" else f"{level}/{name}"
            printed[key] = float(match[2])
    if not printed:
        raise ValueError(f"{file}: expected a result file of compute_dpg_bench.py with its figures")
    return printed


DPG_BENCH = DrawingBenchmark(read, path, finish, results, headline="dpg_score", square=True)
