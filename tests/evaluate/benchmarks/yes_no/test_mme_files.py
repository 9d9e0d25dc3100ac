"""MME: files that are not as released, and the files its own tool reads."""

import shutil

import pytest
from support import golden_benchmarks as golden

from emu3_jax.evaluate.benchmarks.yes_no.mme import EVAL_TOOL, MME, RESULTS, TREE, read


@pytest.fixture
def data(tmp_path):
    return shutil.copytree(golden.FOLDER / "mme", tmp_path / "mme")


def tool_file(data):
    return data / RESULTS / "existence.txt"


def rewrite(path, change):
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(change(lines)), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[::2] + lines[1::2],  # shuffled
        lambda lines: lines[::2],  # one line an image
        lambda lines: lines[:-1],
    ],
)
def test_mme_refuses_broken_pairs(data, change):
    rewrite(tool_file(data), change)
    with pytest.raises(ValueError, match=r"existence\.txt:\d+: expected the two questions of"):
        read(data, EVAL_TOOL)


def test_mme_refuses_broken_pairs_in_the_tree(data):
    path = sorted((data / TREE / "existence").glob("*.txt"))[0]
    rewrite(path, lambda lines: lines[:1])
    with pytest.raises(ValueError, match=rf"{path.name}:1: expected the two questions of"):
        read(data)


def test_mme_refuses_an_image_twice(data):
    rewrite(tool_file(data), lambda lines: lines + lines[:2])
    with pytest.raises(ValueError, match=r"the id 'existence/.*/0' occurs twice"):
        read(data, EVAL_TOOL)


def test_mme_refuses_other_cells(data):
    rewrite(tool_file(data), lambda lines: ["a.jpg\tIs it?\n", *lines[1:]])
    with pytest.raises(ValueError, match=r"existence.txt:1: expected image, question, answer betw"):
        read(data, EVAL_TOOL)


def test_mme_refuses_other_answers(data):
    rewrite(tool_file(data), lambda lines: [lines[0].replace("\tYes", "\tMaybe"), *lines[1:]])
    with pytest.raises(ValueError, match=r"existence.txt:1: the answer is 'Maybe.*expected 'Yes'"):
        read(data, EVAL_TOOL)


@pytest.mark.parametrize("version", ["", EVAL_TOOL])
def test_mme_refuses_a_missing_image(data, version):
    image = sorted((data / TREE / "posters").rglob("*.jpg"))[0]
    image.unlink()
    with pytest.raises(ValueError, match=image.stem):
        read(data, version)


def test_mme_refuses_another_ending(data):
    image = sorted((data / TREE / "posters").rglob("*.jpg"))[0]
    image.rename(image.with_suffix(".png"))
    with pytest.raises(ValueError, match=rf"{image.name} does not exist"):
        read(data, EVAL_TOOL)


def test_mme_refuses_a_missing_task(data):
    shutil.rmtree(data / TREE / "color")
    with pytest.raises(ValueError, match="color does not exist"):
        read(data)


def test_mme_refuses_a_missing_file_of_the_tool(data):
    tool_file(data).unlink()
    with pytest.raises(ValueError, match=r"existence.txt does not exist"):
        read(data, EVAL_TOOL)


def test_mme_refuses_images_of_one_name(data):
    image = sorted((data / TREE / "color").glob("*.jpg"))[0]
    shutil.copy(image, image.with_suffix(".png"))
    with pytest.raises(ValueError, match="have the same name"):
        read(data)


def test_mme_reads_the_later_archive(data):
    whole = read(data)
    (data / TREE).rename(data / "moved")
    (data / TREE).mkdir()
    (data / "moved").rename(data / TREE / "MME_Benchmark")
    assert [question.id for question in read(data)] == [question.id for question in whole]


def test_mme_answers_of_several_lines(data):
    questions = read(data)
    answers = ["\nyes\tit is"] * len(questions)
    scored = MME.rules["official"](questions, answers)
    assert {score.parsed for score in scored.scores} == {"yes"}
    assert scored.notes[0].startswith(f"{len(questions)} answers have a tab or a line feed")


def test_mme_figures_of_a_part(data):
    questions = [q for q in read(data) if q.group["task"] == "count"]
    scored = MME.rules["official"](questions, [q.truth for q in questions])
    assert scored.figures["subtask/count/score"] == 200.0
    assert "perception" not in scored.figures


def test_mme_writes_the_files_of_the_tool(data):
    questions = read(data, EVAL_TOOL)
    files = MME.submission(questions, ["Yes\nit is"] * len(questions))
    assert len(files) == 14
    released = tool_file(data).read_text(encoding="utf-8").splitlines()
    written = files["existence.txt"].decode().splitlines()
    assert written == [f"{line}\tYes it is" for line in released]
