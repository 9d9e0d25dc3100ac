"""Post-training of the nano model: its stages fit together, and the page shows what they found."""

import csv
import json

import numpy as np
import pytest

from emu3_jax.config import apply_overrides, load_config
from emu3_jax.data import media
from emu3_jax.files import write_json
from emu3_jax.pipeline.stage import Stage
from emu3_jax.post_training import post_training_report, stages
from emu3_jax.post_training.__main__ import main
from emu3_jax.post_training.stages import MODELS, Plan


@pytest.fixture
def plan(tmp_path):
    return Plan(directory=tmp_path / "run", shown=2)


def test_stages_come_after_what_they_read(plan):
    seen = set()
    for stage in [*stages.all_stages(plan), *stages.sampling(plan, ["a", "b"])]:
        assert stage.name not in seen
        assert seen.issuperset(stage.after), stage.name
        seen.add(stage.name)
    assert set(stages.reporting(plan, stages.all_stages(plan)).after) <= seen


def test_configs_take_the_values_that_the_stages_set(plan):
    for stage in stages.all_stages(plan):
        options = dict(word.removeprefix("--").split("=", 1) for word in stage.command[2:])
        if "config" in options:
            config = load_config(options.pop("config"))
            changes = {k.removeprefix("config."): v for k, v in options.items() if "config." in k}
            apply_overrides(config, changes)


def test_every_model_is_trained_before_it_is_asked_or_measured(plan):
    names = [stage.name for stage in stages.all_stages(plan)]
    for name in (*stages.CHATTING, *stages.DRIFTING):
        measured = [n for n in names if n in (f"answers_{name}", f"evaluate_{name}")]
        assert measured
        if name != "pretrained":
            assert names.index(name) < min(map(names.index, measured))


def rows(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    media.write_png(path, np.full((8, 8, 3), level, np.uint8))


@pytest.fixture
def finished(plan):
    """The files that the stages leave, as small as they can be."""
    for split, name in (("validation", "a"), ("validation_combination", "b")):
        rows(plan.corpus / f"{split}.jsonl", [{"id": name, "image": "x", "text": f"thing {name}"}])
        picture(plan.corpus / f"stills/{name}.webp", 10)
    picture(plan.directory / "easy_vqa/test/7.png", 20)
    keys = {"validation": "a-0", "validation_combination": "b-0", "test": "test-7-0"}
    for name in stages.CHATTING:
        metrics = {f"right_{split}": 50.0 for split in keys}
        write_json(
            plan.answers(name) / "results.json", {"results": {"questions": {"metrics": metrics}}}
        )
        for split, key in keys.items():
            with open(plan.answers(name) / f"questions_{split}.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["id", "question", "truth", "answer"])
                writer.writerow([key, f"what <{split}>?", "red", "Red." if name == "chat" else ""])
    for name in stages.DRIFTING:
        metrics = {"likelihood": {"metrics": {"nats_text_to_image_on_image": 3.25}}}
        write_json(plan.evaluation(name) / "results.json", {"results": metrics})
    for name in MODELS:
        if name != "pretrained":
            log = [{"step": 1, "loss/source/chat": 2.0, "tokens_per_second": 5.0}]
            rows(plan.run(name) / "metrics.jsonl", log)
    for name in stages.DRAWN:
        for number in range(2):
            picture(plan.samples(name) / f"image_{number:05d}.png", 30)
    stage = Stage("chat", "Tune", ("-m", "emu3_jax.train"))
    marker = {"done": True, "seconds": 61.0, "title": stage.title, "command": stage.shown()}
    write_json(plan.directory / "stages" / "chat.json", marker)
    return plan


def test_the_page_has_answers_drawings_figures_and_commands(finished):
    page = post_training_report.build(finished)
    for part in ("what &lt;test&gt;?", "Red.", "thing a", "thing b", "3.250", "50.0",
                 "python -m emu3_jax.train", "1 min 01 s", "chat, LoRA"):  # fmt: skip
        assert part in page, part
    # The images of three questions, and two captions by three models.
    assert page.count("data:image/webp") == 3 + 2 * 3


def test_what_is_missing_is_named(finished):
    (finished.answers("chat") / "questions_test.csv").unlink()
    with pytest.raises(OSError, match="questions_test"):
        post_training_report.build(finished)


def test_a_number_that_is_too_small_is_named_before_any_work(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["post_training", f"--directory={folder}", "--dpo_steps=0"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and not folder.exists()
    assert "dpo_steps must be at least 1, not 0" in capsys.readouterr().err
