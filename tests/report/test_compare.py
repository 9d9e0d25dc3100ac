"""Comparing runs: differences of config, last figures, plot."""

import json
import pathlib
import xml.etree.ElementTree as ElementTree

import pytest

from emu3_jax.report import compare


def write_run(path, dropout, loss, every=20, validation=True):
    path.mkdir()
    config = {"task": "pretrain", "model": {"dropout": dropout}, "run": {"log": {"every": every}}}
    (path / "config.json").write_text(json.dumps(config))
    rows = [{"step": s, "loss/text": loss + (s < 50)} for s in range(10, 201, 10)]
    if validation:
        rows[-1]["validation/likelihood/nats_text"] = loss + 0.25
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "base", 0.1, 2.0)
    write_run(tmp_path / "no_dropout", 0.0, 1.5, every=10)
    (tmp_path / "base" / "evaluation").mkdir()
    results = {"emoji_retrieval": {"metrics": {"recall_at_10": 44.25}}}
    (tmp_path / "base" / "evaluation" / "results.json").write_text(json.dumps({"results": results}))
    return [tmp_path / "base", tmp_path / "no_dropout"]


def test_table_and_plot(runs, tmp_path, capsys):
    compare.main([*map(str, runs), f"--output={tmp_path / 'out'}"])
    text = capsys.readouterr().out
    assert "| `model.dropout` | `0.1` | `0.0` |" in text
    assert "log.every" not in text
    assert "| validation, text (nats) | 2.250 | 1.750 |" in text
    assert "| training, text (nats) | 2.000 | 1.500 |" in text
    assert "Recall at 10 | 44.250 | – |" in text
    plot = ElementTree.parse(tmp_path / "out" / "comparison.svg").getroot()
    words = [t.text for t in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert {"base", "no_dropout", "Text tokens, validation"} <= set(words)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<td>model.dropout</td><td>0.1</td><td>0.0</td>" in page and "log.every" not in page
    assert "<td>validation, text (nats)</td><td>2.250</td><td>1.750</td>" in page
    assert "Text tokens, validation" in page and "its command was not recorded" in page


def test_mixtures_are_compared_entry_by_entry(tmp_path):
    draw, read = {"task": "text_to_image", "weight": 4.0}, {"task": "image_to_text", "weight": 3.0}
    for name, mixture in (("both", [draw, read]), ("one", [draw | {"weight": 2.0}])):
        write_run(tmp_path / name, 0.1, 2.0)
        (tmp_path / name / "config.json").write_text(json.dumps({"data": {"mixture": mixture}}))
    runs = [compare.read_run(tmp_path / name) for name in ("both", "one")]
    assert compare.differences(runs) == {
        "data.mixture.0.weight": [4.0, 2.0],
        "data.mixture.1.task": ["image_to_text", None],
        "data.mixture.1.weight": [3.0, None],
    }
    assert "| `data.mixture.1.weight` | `3.0` | – |" in compare.markdown(runs)


def test_runs_without_validation_are_compared_by_training_loss(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, 0.1, 2.0, validation=False)
    text = compare.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert "The configs are the same." in text
    assert "training" in (tmp_path / "out" / "comparison.svg").read_text()


@pytest.mark.parametrize(
    ("names", "message"),
    [(["base"], "two run directories"), (["base", "nowhere"], "nowhere is not a run directory")],
)
def test_what_cannot_be_compared(runs, tmp_path, capsys, names, message):
    with pytest.raises(SystemExit) as stop:
        compare.main([*(str(tmp_path / n) for n in names), f"--output={tmp_path / 'out'}"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not pathlib.Path(tmp_path / "out").exists()


def test_vision_tokenizers_are_compared_by_what_they_reconstruct(tmp_path):
    for name, psnr in (("a", 20.0), ("b", 21.0)):
        write_run(tmp_path / name, 0.0, 2.0, validation=False)
        rows = [
            {"step": step, "validation/reconstruction/psnr_clips": psnr, "codebook/dead": 0.25}
            for step in (100, 200)
        ]
        rows[-1]["validation/reconstruction/psnr_images"] = psnr  # one point is no line
        with (tmp_path / name / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    compare.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    plot = (tmp_path / "out" / "comparison.svg").read_text()
    assert "PSNR of validation clips" in plot and "PSNR of validation images" not in plot
    assert "Dead codes, training" in plot and "Codebook perplexity" not in plot
