"""The evaluator of benchmarks of drawing: where samples go, what is kept, refused and measured."""

import json

import jax
import numpy as np
import pytest
import tiny_models

from emu3_jax import sharding
from emu3_jax.data import media
from emu3_jax.evaluate import evaluator
from emu3_jax.evaluate import registry as evaluators
from emu3_jax.evaluate.benchmarks import drawings, registry
from emu3_jax.evaluate.benchmarks.drawing import drawing
from emu3_jax.evaluate.benchmarks.drawing.drawing import DrawingBenchmark, Prompt, Results
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.train import weights

PROMPTS = [Prompt("a", "a cat", 3), Prompt("b", "a dog", 2), Prompt("c", "a clip", 1, "video")]


def read(data, version):
    if data is not None and not data.exists():
        raise ValueError(f"{data} does not exist")
    return PROMPTS if version == "clips" else PROMPTS[:2]


def path(prompt, sample):
    return f"{prompt.id}/{sample}.{'png' if prompt.kind == 'image' else 'mp4'}"


def finish(folder, prompts):
    drawing.check_folder(folder, prompts, path)
    (folder / "list.json").write_text(json.dumps([prompt.text for prompt in prompts]))


def results(file, prompts, partial):
    scores = json.loads(file.read_text())
    notes = drawing.check_whole(len(scores), len(prompts), "prompts", file, partial)
    return Results(scores, {"overall": drawing_mean(scores)}, notes)


def drawing_mean(scores):
    return sum(scores.values()) / len(scores)


def word_length(prompts, images):
    """A scorer that depends on the prompt and on the image."""
    return [len(p) + float(i.mean()) for p, i in zip(prompts, images, strict=True)]


@pytest.fixture(autouse=True)
def benchmark(monkeypatch):
    made = DrawingBenchmark(read, path, finish, results, "overall", ("clips",))
    monkeypatch.setitem(registry.DRAWINGS, "sketches", made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_models(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def bundle(folder):
    return weights.load_language_model(folder / "language")[0]


def entry(folder, **settings):
    given = dict(benchmark="sketches", size=(8, 12), frames=4, batch_size=2)
    given["vision_tokenizer"] = str(folder / "vision")
    (made,) = evaluators.make([given | settings])
    return made


def run(folder, bundle, output, **settings):
    made = entry(folder, **settings)
    made.check(bundle)
    subject = Subject("tiny", folder=output, language_model=bundle)
    return evaluator.run_all(subject, [made])["sketches"]


def samples(output):
    files = sorted(p for p in (output / "sketches").rglob("*") if p.suffix in drawing.MEDIA)
    return {str(p.relative_to(output / "sketches")): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def whole(folder, bundle, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = DrawingBenchmark(read, path, finish, results, "overall", ("clips",))
        patch.setitem(registry.DRAWINGS, "sketches", made)
        output = tmp_path_factory.mktemp("whole")
        return output, run(folder, bundle, output)


def test_samples_have_the_names_and_the_size_that_are_asked_for(whole):
    output, result = whole
    assert list(samples(output)) == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png"]
    assert media.read_image(output / "sketches" / "a" / "0.png").shape == (8, 12, 3)
    assert json.loads((output / "sketches" / "list.json").read_text()) == ["a cat", "a dog"]
    assert result.metrics["samples"] == 5 and result.metrics["prompts"] == 2
    assert len(set(samples(output).values())) == 5  # each has a draw of its own


def test_how_each_was_sampled_is_written(whole):
    lines = (whole[0] / "sketches_items.jsonl").read_text().splitlines()
    assert json.loads(lines[3]) == {
        "id": "b/0.png", "prompt_id": "b", "prompt": "a dog", "seed": 0, "number": 3,
    }  # fmt: skip
    conditions = json.loads((whole[0] / "sketches_run.json").read_text())
    assert conditions["size"] == [8, 12] and conditions["sampling"]["guidance"] == 3


def test_a_stopped_run_draws_what_is_missing(folder, bundle, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(drawings, "BATCHES_AT_ONCE", 1)
    write, written = media.write_png, []

    def fail(*args):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(args[0])
        write(*args)

    monkeypatch.setattr(media, "write_png", fail)
    with pytest.raises(KeyboardInterrupt):
        run(folder, bundle, tmp_path)
    monkeypatch.undo()
    made = DrawingBenchmark(read, path, finish, results, "overall", ("clips",))
    monkeypatch.setitem(registry.DRAWINGS, "sketches", made)
    assert len(samples(tmp_path)) == 3
    run(folder, bundle, tmp_path, batch_size=5)
    assert samples(tmp_path) == samples(whole[0])


def test_on_a_mesh_the_samples_are_the_same(folder, whole, tmp_path):
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))):
        run(folder, weights.load_language_model(folder / "language")[0], tmp_path)
    assert samples(tmp_path) == samples(whole[0])


def test_other_settings_do_not_mix(folder, bundle, whole):
    with pytest.raises(ValueError, match="given with sampling"):
        run(folder, bundle, whole[0], sampling={"guidance": 2.0})


def test_clips_are_filmed(folder, bundle, tmp_path):
    run(folder, bundle, tmp_path, version="clips")
    frames, _, _ = media.read_video(tmp_path / "sketches" / "c" / "0.mp4")
    assert frames.shape == (4, 8, 12, 3)


def test_results_of_the_scorer_are_read_back(folder, bundle, whole, tmp_path):
    assert any("authors' program" in note for note in whole[1].notes)
    file = tmp_path / "scores.json"
    file.write_text('{"a": 1.0, "b": 0.5}')
    assert run(folder, bundle, whole[0], results=str(file)).metrics["overall"] == 0.75
    file.write_text('{"a": 1.0}')
    with pytest.raises(ValueError, match="1 prompts are scored, expected 2"):
        run(folder, bundle, whole[0], results=str(file))
    found = run(folder, bundle, whole[0], results=str(file), allow_partial=True)
    assert found.metrics["overall"] == 1.0 and "only 1 of 2 prompts" in " ".join(found.notes)


def test_scorers_are_means_over_the_samples(folder, bundle, whole):
    scorers = ({"scorer": f"{__name__}:word_length", "name": "length"},)
    found = run(folder, bundle, whole[0], scorers=scorers).metrics["length"]
    files = [whole[0] / "sketches" / name for name in samples(whole[0])]
    assert found == pytest.approx(5 + np.mean([media.read_image(f).mean() for f in files]))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"benchmark": "sketch"}, r"evaluation\[0\].benchmark: .*did you mean sketches"),
        ({"size": (9, 8)}, "must be multiples of 2"),
        ({"size": (8,)}, "size must be height and width"),
        ({"limit": 1}, "limit takes a part of the benchmark; set allow_partial"),
        ({"version": "clip"}, "version must be one of '', 'clips', not 'clip'"),
        ({"fps": 0.0}, "fps must be above 0"),
        ({"version": "clips", "frames": 3}, "frames=3 must be a multiple of 4"),
        ({"inception": "x.pth"}, "FID needs real images"),
        ({"reference": "gone"}, "reference='gone' cannot be used .*holds no image"),
        ({"data": "gone"}, "data='gone' cannot be used"),
        ({"scorers": ({"scorer": "clap"},)}, "there is no scorer 'clap'"),
    ],
)
def test_wrong_settings_are_one_sentence(folder, bundle, settings, message):
    with pytest.raises(ValueError, match=message):
        entry(folder, **settings).check(bundle)


def test_a_folder_is_needed(folder, bundle):
    with pytest.raises(ValueError, match="needs a folder for its results"):
        run(folder, bundle, None)
