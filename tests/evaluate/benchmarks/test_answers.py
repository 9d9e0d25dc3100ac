"""The evaluator of benchmarks: what it asks, keeps, refuses and prints."""

import json

import jax
import numpy as np
import pytest
import tiny_models

from emu3_jax import sharding
from emu3_jax.data import media
from emu3_jax.evaluate import evaluator, registry
from emu3_jax.evaluate.benchmarks import answers as answers_lib
from emu3_jax.evaluate.benchmarks.answers import Answers
from emu3_jax.evaluate.during_training import EvaluationCallback
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.train import weights

SIZES = [(8, 8), (8, 12), (12, 8), (6, 6), (8, 8), (10, 8)]
ROWS = 6  # of each split


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """vision/ and language/, models; pope/, a small benchmark with images of many sizes."""
    folder = tiny_models.save_models(tmp_path_factory.mktemp("answers"))
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate(SIZES):
        image = rng.integers(0, 256, (h, w, 3), np.uint8)
        media.write_png(folder / "pope" / "val2014" / f"{i}.png", image)
    for split in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": i,
                "image": f"{i}.png",
                "text": f"Is {i}?",
                "label": ("yes", "no")[i % 2],
            }
            for i in range(ROWS)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "pope" / f"coco_pope_{split}.json").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def bundle(folder):
    return weights.load_language_model(folder / "language")[0]


def entry(folder, **settings):
    given = dict(benchmark="pope", data=str(folder / "pope"), max_new=4, batch_size=4)
    given |= dict(vision_tokenizer=str(folder / "vision"), min_pixels=16, max_pixels=400)
    (made,) = registry.make([given | settings])
    return made


def run(folder, bundle, output=None, **settings):
    made = entry(folder, **settings)
    made.check(bundle)
    subject = Subject("tiny", folder=output, language_model=bundle)
    return evaluator.run_all(subject, [made])["pope"]


def lines(output):
    return [json.loads(line) for line in (output / "pope_items.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(folder, bundle, tmp_path_factory):
    """(folder of the results, result) of a run that was not disturbed."""
    output = tmp_path_factory.mktemp("whole")
    return output, run(folder, bundle, output)


def test_an_entry_with_a_benchmark_needs_no_evaluator(folder):
    made = entry(folder)
    assert isinstance(made, Answers) and made.name == "pope"
    assert registry.resolved([made])[0]["evaluator"] == "answers"
    assert made.headline == ("official/mean_of_3/f1",)


def test_each_item_has_what_was_asked_answered_and_scored(whole):
    output, result = whole
    items = lines(output)
    assert [item["id"] for item in items][:2] == ["random/0", "random/1"]
    assert len(items) == result.metrics["questions"] == result.metrics["answered"] == 3 * ROWS
    first = items[0]
    assert first["prompt"] == (
        "You are a helpful assistant. USER: <image 4x4>Is 0?\n"
        "Answer the question using a single word or phrase. ASSISTANT:"
    )
    assert first["image_sizes"] == [[8, 8]] and first["truth"] == "yes"
    assert first["scores"].keys() == {"official", "lmms_eval", "vlmevalkit"}
    assert first["scores"]["official"]["parsed"] in ("yes", "no")
    conditions = json.loads((output / "pope_run.json").read_text())
    assert conditions["template"] == "llava" and conditions["questions"] == 3 * ROWS
    assert len(conditions["weights"]) == 12 and conditions["sampling"]["temperature"] == 0


def test_figures_of_every_rule_are_printed_with_the_template(whole):
    metrics = whole[1].metrics
    assert next(iter(metrics)) == "official/mean_of_3/f1"
    assert {"lmms_eval/pooled/f1", "vlmevalkit/Overall/f1"} <= metrics.keys()
    assert whole[1].notes[0].startswith("template llava; first: 'You are")


def test_answers_do_not_depend_on_the_batch(folder, bundle, whole, tmp_path):
    run(folder, bundle, tmp_path, batch_size=1)
    assert lines(tmp_path) == lines(whole[0])


def test_drawn_answers_do_not_depend_on_the_batch_or_on_a_stop(
    folder, bundle, tmp_path, monkeypatch
):
    drawn = {"sampling": {"temperature": 1.0, "seed": 3}}
    run(folder, bundle, tmp_path / "whole", **drawn)
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(folder, bundle, tmp_path / "stopped", **drawn)
    monkeypatch.undo()
    run(folder, bundle, tmp_path / "stopped", batch_size=3, **drawn)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def stop_after(monkeypatch, count):
    """Stops after so many batches, written one by one."""
    answer, done = answers_lib.asking.answer, []

    def one(*args):
        if len(done) >= count:
            raise KeyboardInterrupt
        done.append(1)
        return answer(*args)

    monkeypatch.setattr(answers_lib, "BATCHES_AT_ONCE", 1)
    monkeypatch.setattr(answers_lib.asking, "answer", one)


def test_a_stopped_run_goes_on_and_ends_as_a_whole_one(
    folder, bundle, whole, tmp_path, monkeypatch
):
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(folder, bundle, tmp_path)
    monkeypatch.undo()
    text = (tmp_path / "pope_items.jsonl").read_text()
    assert text.count("\n") == 12
    (tmp_path / "pope_items.jsonl").write_text(text[:-9])  # a kill cuts the last line
    asked = record_asked(monkeypatch)
    result = run(folder, bundle, tmp_path)
    assert len(asked) == 3 * ROWS - 11
    assert lines(tmp_path) == lines(whole[0])
    assert result.metrics.items() - {("seconds", 0)} >= {
        (name, value) for name, value in whole[1].metrics.items() if name != "seconds"
    }


def test_a_finished_run_asks_nothing_again(folder, bundle, whole, monkeypatch):
    monkeypatch.setattr(answers_lib.asking, "answer", None)
    again = run(folder, bundle, whole[0]).metrics
    assert {**again, "seconds": 0} == {**whole[1].metrics, "seconds": 0}


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"template": "emu3"}, "template 'llava', not 'emu3'"),
        ({"version": "random"}, "version"),
        ({"max_new": 5}, "max_new 4, not 5"),
        ({"sampling": {"seed": 1, "temperature": 0.0}}, "sampling"),
    ],
)
def test_answers_under_other_conditions_are_refused(folder, bundle, whole, settings, key):
    before = (whole[0] / "pope_items.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"has answers given with .*{key}|{key}"):
        run(folder, bundle, whole[0], **settings)
    assert (whole[0] / "pope_items.jsonl").read_bytes() == before


def test_an_evaluation_during_training_replaces_answers_of_other_weights(folder, bundle, tmp_path):
    made = entry(folder, limit=2, allow_partial=True)
    callback = EvaluationCallback(
        made, lambda state, label: Subject(label, language_model=state), tmp_path
    )
    output = tmp_path / "evaluation" / "step_000007"
    assert callback(7, bundle, NoWriter())["validation/pope/answered"] == 2
    (output / "pope_run.json").write_text(json.dumps({"weights": "others"}))
    (output / "pope_items.jsonl").write_text(json.dumps({"id": "random/0", "answer": "?"}) + "\n")
    callback(7, bundle, NoWriter())
    assert len(lines(output)) == 2 and all(item["answer"] != "?" for item in lines(output))


class NoWriter:
    def write_image(self, *arguments):
        """Nothing is drawn here."""


@pytest.fixture
def broken(folder):
    image = folder / "pope" / "val2014" / "2.png"
    content = image.read_bytes()
    image.write_bytes(content[:30])
    yield
    image.write_bytes(content)


def test_figures_of_a_part_are_refused_unless_asked_for(folder, bundle, broken, tmp_path):
    with pytest.raises(ValueError, match="3 of 18 questions could not be asked; .*random/2"):
        run(folder, bundle, tmp_path)
    result = run(folder, bundle, tmp_path, allow_partial=True)
    assert result.metrics["answered"] == 15
    assert "figures of 15 of 18 questions" in result.notes
    assert any(note.startswith("left out: question random/2: ") for note in result.notes)


def test_a_question_that_is_too_long_is_a_problem_of_its_own(folder, bundle, tmp_path):
    file = folder / "pope" / "coco_pope_popular.json"
    content = file.read_text()
    file.write_text(content.replace("Is 1?", f"Is {'very ' * 40}1?"))
    with pytest.raises(
        ValueError, match="1 of 18 questions .*popular/1: the prompt has [0-9]+ tok"
    ):
        run(folder, bundle, tmp_path)
    result = run(folder, bundle, tmp_path, allow_partial=True)
    file.write_text(content)
    assert result.metrics["answered"] == 17


def test_an_image_that_was_exchanged_is_looked_at_again(
    folder, bundle, whole, tmp_path, monkeypatch
):
    run(folder, bundle, tmp_path)
    image = folder / "pope" / "val2014" / "3.png"
    content = image.read_bytes()
    media.write_png(image, np.zeros((6, 6, 3), np.uint8))
    asked = record_asked(monkeypatch)
    run(folder, bundle, tmp_path)
    assert len(asked) == 3 and lines(tmp_path) != lines(whole[0])
    image.write_bytes(content)
    run(folder, bundle, tmp_path)
    assert lines(tmp_path) == lines(whole[0])


def record_asked(monkeypatch):
    """A list that receives the prompts that are asked."""
    asked, answer = [], answers_lib.asking.answer
    monkeypatch.setattr(
        answers_lib.asking, "answer", lambda *args: asked.extend(args[1]) or answer(*args)
    )
    return asked


def test_options_are_chosen_by_likelihood_where_there_are_options(folder, bundle, tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [{"question_id": i, "text": f"Which {i}?", "answer": "B", "options": ["a", "bc"]}
            for i in range(3)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dict(benchmark="own_questions", name="pope", data=str(file), choose="likelihood")
    run(folder, bundle, tmp_path / "out", **settings)
    for item in lines(tmp_path / "out"):
        likelihoods = item["likelihoods"]
        assert likelihoods.keys() == {"A", "B"}
        assert item["answer"] == max(likelihoods, key=likelihoods.get)
        assert "bc" not in item["prompt"]  # asked without options
    file.write_text(json.dumps({"question_id": 9, "text": "Why?", "answer": "x"}) + "\n")
    with pytest.raises(ValueError, match="choose=likelihood: question 9 has no options"):
        run(folder, bundle, tmp_path / "out", **settings)


def test_a_question_that_failed_is_asked_again(folder, bundle, whole, tmp_path):
    image = folder / "pope" / "val2014" / "2.png"
    content = image.read_bytes()
    image.write_bytes(content[:30])
    run(folder, bundle, tmp_path, allow_partial=True)
    image.write_bytes(content)
    run(folder, bundle, tmp_path)
    assert lines(tmp_path) == lines(whole[0])


def test_images_are_resized_within_the_limits_and_padded_if_they_are_too_long(folder, bundle):
    image = folder / "pope" / "val2014" / "0.png"
    content = image.read_bytes()
    media.write_png(image, np.full((4, 24, 3), 200, np.uint8))  # six times as wide as high
    made = entry(folder, max_pixels=100, allow_partial=True, limit=1)
    images, failed = made._images(made.questions[:1], bundle)
    image.write_bytes(content)
    ((codes, (height, width)),) = images.values()
    assert not failed and height * width <= 100
    assert codes.shape == (height // 2, width // 2)


def test_a_limit_is_a_part(folder, bundle, tmp_path):
    with pytest.raises(ValueError, match="limit takes a part of the benchmark; set allow_partial"):
        entry(folder, limit=4)
    result = run(folder, bundle, tmp_path, limit=4, allow_partial=True)
    assert len(lines(tmp_path)) == 4 and "figures of 4 of 18 questions" in result.notes


def test_on_a_mesh_of_eight_the_answers_are_the_same(folder, whole, tmp_path):
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))):
        run(folder, weights.load_language_model(folder / "language")[0], tmp_path)
    assert lines(tmp_path) == lines(whole[0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"benchmark": "pop"}, r"there is no benchmark 'pop' \(did you mean pope\?\)"),
        ({"template": "llama"}, "template must be one of 'emu3', 'llava', .* not 'llama'"),
        ({"version": "random2"}, "version must be one of '', 'random', .*, not 'random2'"),
        ({"choose": "best"}, "choose must be one of 'letter', 'likelihood', not 'best'"),
        ({"judgements": "x.json"}, "pope needs no judge"),
        ({"max_new": -1}, "max_new must be at least 0"),
    ],
)
def test_wrong_settings_are_one_sentence(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        entry(folder, **settings)


def test_missing_data_are_found_before_any_work(folder, bundle):
    with pytest.raises(ValueError, match="data is not set; pope needs it"):
        entry(folder, data="").check(bundle)
    with pytest.raises(ValueError, match="data='gone' .*coco_pope_random.json does not exist"):
        entry(folder, data="gone").check(bundle)
