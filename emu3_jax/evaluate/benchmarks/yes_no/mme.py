"""MME: fourteen tasks of paired yes-or-no questions; arXiv 2306.13394.

github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation. Released in two
layouts: MME_Benchmark_release_version/<task>/ has the images and a text file of two lines for each;
eval_tool/Your_Results/<task>.txt has the questions of a task in one file, two lines an image
together, and takes the answers as a last column. Papers print the sums over ten tasks of perception
(at most 2000) and four of cognition (at most 800).
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Score, Scored
from emu3_jax.evaluate.benchmarks.yes_no.words import whole_word

TASKS = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": (
        "commonsense_reasoning",
        "numerical_calculation",
        "text_translation",
        "code_reasoning",
    ),
}
TREE = "MME_Benchmark_release_version"
RESULTS = "eval_tool/Your_Results"
EVAL_TOOL = "eval_tool"
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png"}

_BREAKS = re.compile(r"[\t\r\n]")


@dataclasses.dataclass(frozen=True)
class _Line:
    where: str
    image: str
    text: str
    truth: str


def read(data: pathlib.Path, version: str = "") -> list[Question]:
    """The questions from the tree of images, or from the files of the tool ("eval_tool").

    The images are those of the tree in both. A later archive has one more folder in the tree.
    """
    tree = data / TREE
    if (tree / "MME_Benchmark").is_dir():
        tree = tree / "MME_Benchmark"
    questions = []
    for task in itertools.chain(*TASKS.values()):
        images = _images(tree / task)
        if version == EVAL_TOOL:
            lines = _tool_lines(data / RESULTS / f"{task}.txt")
        else:
            lines = _tree_lines(tree / task, images)
        for line, number in _pairs(list(lines)):
            image = images.get(pathlib.Path(line.image).stem, tree / task / line.image)
            if image.name != line.image:
                image = tree / task / line.image
            file = reading.image_file(image, line.where)
            key = f"{task}/{line.image}/{number}"
            group = {"task": task, "image": line.image}
            questions.append(Question(key, line.text, (file,), line.truth, "yes_no", group=group))
    reading.check_unique(questions, str(data))
    return questions


def _images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name without ending → image; some tasks keep theirs in folders of the task's folder."""
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist; all fourteen tasks are needed")
    images: dict[str, pathlib.Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_ENDINGS:
            if path.stem in images:
                raise ValueError(f"{path} and {images[path.stem]} have the same name")
            images[path.stem] = path
    return images


def _tree_lines(folder: pathlib.Path, images: Mapping[str, pathlib.Path]) -> Iterator[_Line]:
    for path in sorted(folder.rglob("*.txt")):
        if path.stem not in images:
            raise ValueError(f"{path}: there is no image {path.stem} in {folder}")
        for where, (text, truth) in _cells(path, "question", "answer"):
            yield _Line(where, images[path.stem].name, text, _truth(where, truth))


def _tool_lines(path: pathlib.Path) -> Iterator[_Line]:
    for where, (image, text, truth) in _cells(path, "image", "question", "answer"):
        yield _Line(where, image, text, _truth(where, truth))


def _cells(path: pathlib.Path, *names: str) -> Iterator[tuple[str, list[str]]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            cells = line.split("\t")
            if len(cells) != len(names):
                raise ValueError(
                    f"{path}:{number}: expected {', '.join(names)} between tabs, found {cells}"
                )
            yield f"{path}:{number}", cells


def _truth(where: str, cell: str) -> str:
    truth = cell.strip().lower()
    if truth not in ("yes", "no"):
        raise ValueError(f"{where}: the answer is {cell!r}, expected 'Yes' or 'No'")
    return truth


def _pairs(lines: Sequence[_Line]) -> Iterator[tuple[_Line, int]]:
    """(line, 0 or 1) of lines of which each two are of one image; ValueError if they are not."""
    for first, second in itertools.zip_longest(lines[::2], lines[1::2]):
        if second is None or second.image != first.image:
            raise ValueError(
                f"{first.where}: expected the two questions of {first.image} in a pair of lines, "
                "one after the other; was the file shuffled or deduplicated?"
            )
        yield from ((first, 0), (second, 1))


def official(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """calculation.py of the authors: "yes", else "no", in the first four characters.

    Its exact comparison with "yes" and "no" never fires, as it leaves the line feed on the answer.
    """
    broken = sum(_BREAKS.search(answer) is not None for answer in answers)
    note = (
        f"{broken} answers have a tab or a line feed, which the official files cannot hold; they "
        "were scored with blanks in their place"
    )
    parsed = [_start(_BREAKS.sub(" ", answer).lower()) for answer in answers]
    return _scored(questions, parsed, (note,) if broken else ())


def lmms_eval(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """tasks/mme/utils.py: as the official rule without blanks at the ends and stops; y and n."""

    def parse(answer: str) -> str:
        text = answer.lower().strip().replace(".", "")
        return {"y": "yes", "n": "no"}.get(text) or _start(text)

    return _scored(questions, [parse(answer) for answer in answers])


def vlmevalkit(questions: Sequence[Question], answers: Sequence[str]) -> Scored:
    """utils/yorn.py: the word yes or no anywhere, not both. It calls cognition "reasoning"."""
    return _scored(questions, [whole_word(answer) for answer in answers])


def submission(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, bytes]:
    """The files of eval_tool/Your_Results that calculation.py reads."""
    files: dict[str, str] = {}
    for question, answer in zip(questions, answers, strict=True):
        task, image = question.group["task"], question.group["image"]
        cells = (image, question.text, question.truth.capitalize(), _BREAKS.sub(" ", answer))
        files[f"{task}.txt"] = files.get(f"{task}.txt", "") + "\t".join(cells) + "\n"
    return {name: text.encode() for name, text in files.items()}


def _start(text: str) -> str:
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def _scored(
    questions: Sequence[Question], parsed: Sequence[str], notes: Iterable[str] = ()
) -> Scored:
    """A task's score is the percentage of right answers plus that of images with both right.

    Of a part of the questions, images with one of their two do not count in the second.
    """
    scores = [Score(p, float(p == q.truth)) for q, p in zip(questions, parsed, strict=True)]
    tasks: dict[str, dict[str, list[float]]] = {}
    for question, score in zip(questions, scores, strict=True):
        images = tasks.setdefault(question.group["task"], {})
        images.setdefault(question.group["image"], []).append(score.score)
    figures = {}
    for task, images in tasks.items():
        right = 100.0 * mean([score for pair in images.values() for score in pair])
        both = 100.0 * mean([float(all(pair)) for pair in images.values() if len(pair) == 2])
        numbers = {"score": right + both, "acc": right, "acc_plus": both}
        figures |= {f"subtask/{task}/{name}": value for name, value in numbers.items()}
    sums = {
        name: sum(figures[f"subtask/{task}/score"] for task in members)
        for name, members in TASKS.items()
        if tasks.keys() >= set(members)
    }
    total = {"total": sum(sums.values())} if len(sums) == len(TASKS) else {}
    return Scored(scores, figures | sums | total, tuple(notes))


MME = QuestionBenchmark(
    read,
    dict(official=official, lmms_eval=lmms_eval, vlmevalkit=vlmevalkit),
    headline="official/perception",
    versions=(EVAL_TOOL,),
    submission=submission,
)
