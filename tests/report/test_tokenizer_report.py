"""The report on vision tokenizers: its verdicts and the contents of the page."""

import base64
import json
import re

import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.report import tokenizer_report, tokenizer_run
from emu3_jax.report.tokenizer_verdicts import BAD, GOOD, UNKNOWN, change_at_end, verdicts

STEPS = 400
VALIDATION = "validation/reconstruction/"


def healthy_log(**changes):
    """A log line every 20 steps; `changes` (key with __ for /) are values or functions of steps."""
    values = {
        "nonfinite": 0.0,
        "spike": 0.0,
        "gradient_norm/tokenizer": 0.2,
        "codebook/dead": 0.01,
        "codebook/dead_stills": 0.1,
        "codebook/dead_clips": 0.05,
        "codebook/shared": 0.85,
        "adversarial/stills_accuracy_real": 0.7,
        "adversarial/stills_accuracy_fake": 0.6,
        "adversarial/stills_weight": 0.02,
        "psnr/stills": 28.0,
        "frames_per_second": 10.0,
    }
    values |= {name.replace("__", "/"): value for name, value in changes.items()}
    rows = [
        {"step": s} | {n: v(s) if callable(v) else v for n, v in values.items()}
        for s in [1, *range(20, STEPS + 1, 20)]
    ]
    for row in rows:
        if row["step"] % 100 == 0:
            row[f"{VALIDATION}psnr_images"] = 25.0
            row[f"{VALIDATION}codebook_used_corpus"] = 99.5
    return rows


def marks(rows, steps=STEPS, **given):
    given = {"used_percent": 99.0, "discriminator_start": 100} | given
    return {v.subject: (v.mark, v.text) for v in verdicts(rows, steps, **given)}


def validated(rows, key, values):
    """The log with `key` at each fourth of the run."""
    at = dict(zip(range(100, STEPS + 1, 100), values, strict=True))
    return [
        row | ({VALIDATION + key: at[row["step"]]} if row["step"] in at else {}) for row in rows
    ]


def test_a_healthy_run_has_only_good_verdicts():
    found = marks(healthy_log(), boundary_db=0.3)
    assert {mark for mark, _ in found.values()} == {GOOD}
    assert {
        "Codes in use",
        "Discriminator, stills",
        "PSNR of stills",
        "Clip boundaries",
    } <= found.keys()


@pytest.mark.parametrize(
    ("used", "mark", "number"),
    [(95.0, GOOD, "95.0 %"), (94.9, BAD, "94.9 %"), (None, BAD, "90.0 %")],
)
def test_codes_in_use(used, mark, number):
    # Without a measurement: the counts of the last quarter, 10 % dead there and none before.
    rows = healthy_log(codebook__dead=lambda s: 0.1 if s > 300 else 0.0)
    found = marks(rows, used_percent=used)["Codes in use"]
    assert found[0] == mark and number in found[1]


@pytest.mark.parametrize(
    ("real", "fake", "mark", "said"),
    [
        (0.97, 0.95, BAD, "96.0 % on average: it has won"),
        (0.97, 0.92, GOOD, "94.5 % on average"),
        (0.93, 0.07, BAD, "50.0 % on average: it guesses"),
        (0.60, 0.46, GOOD, "53.0 % on average"),
    ],
)
def test_the_discriminator_is_judged_by_both_sides_of_its_last_quarter(real, fake, mark, said):
    rows = healthy_log(
        adversarial__stills_accuracy_real=lambda s: real if s > 300 else 0.7,
        adversarial__stills_accuracy_fake=lambda s: fake if s > 300 else 0.7,
    )
    found = marks(rows)["Discriminator, stills"]
    assert found[0] == mark and said in found[1]


def test_a_discriminator_is_not_judged_before_it_begins():
    # Before its start it is as it was drawn at random: one half, which would read as guessing.
    rows = healthy_log(
        adversarial__stills_accuracy_real=lambda s: 0.5 if s <= 380 else 0.6,
        adversarial__stills_accuracy_fake=lambda s: 0.5 if s <= 380 else 0.55,
    )
    assert marks(rows, discriminator_start=380)["Discriminator, stills"][0] == GOOD
    assert marks(rows, discriminator_start=STEPS)["Discriminator, stills"][0] == UNKNOWN
    assert "Discriminator, stills" not in marks(rows, discriminator_start=None)
    early = [row for row in rows if row["step"] <= 180]
    mark, text = marks(early, discriminator_start=100)["Discriminator, stills"]
    assert mark == UNKNOWN and "80 steps ago" in text
    assert marks(early, discriminator_start=80)["Discriminator, stills"][0] == BAD


@pytest.mark.parametrize(
    ("psnr", "mark", "said"),
    [
        ((23, 24, 24.5, 24.62), BAD, "+0.12 dB over the last quarter, to 24.62 dB: still rising"),
        ((23, 24, 24.5, 24.58), GOOD, "levelled out"),
        ((23, 24, 24.5, 24.3), BAD, "-0.20 dB"),
    ],
)
def test_psnr_at_the_end(psnr, mark, said):
    found = marks(validated(healthy_log(), "psnr_images", psnr))["PSNR of stills"]
    assert found[0] == mark and said in found[1]


def test_psnr_may_be_given_away_for_perception():
    rows = validated(healthy_log(), "psnr_images", (23, 24, 24.5, 24.3))
    rows = validated(rows, "perceptual_images", (0.09, 0.08, 0.07, 0.06))
    found = marks(rows)["PSNR of stills"]
    assert found[0] == GOOD and "-0.0100" in found[1]


def test_the_last_quarter_begins_between_two_validations():
    # At step 75 of 100 the line through (50, 20) and (100, 24) is at 22.
    assert change_at_end([(50, 20.0), (100, 24.0)]) == pytest.approx(2.0)
    assert change_at_end([(90, 20.0), (100, 24.0)]) is None
    assert change_at_end([]) is None


def test_dead_codes_of_stills_and_clips_apart():
    found = marks(healthy_log(codebook__dead_clips=0.3))["Stills and clips"]
    assert found[0] == BAD
    assert "10.0 % dead for stills, 30.0 % dead for clips; 85.0 % serve both" in found[1]
    assert "more clips" in found[1]


def test_bad_steps_are_counted_from_means():
    # One of the 20 steps up to 60 was not finite, two of those up to 80 were spikes.
    rows = healthy_log(
        nonfinite=lambda s: 0.05 if s == 60 else 0.0, spike=lambda s: 0.1 if s == 80 else 0.0
    )
    found = marks(rows)["Bad steps"]
    assert found[0] == BAD and "1 not finite and 2 loss spikes in 400 steps" in found[1]


def test_a_peak_of_the_gradient():
    found = marks(healthy_log(gradient_norm__tokenizer=lambda s: 2.2 if s == 240 else 0.2))[
        "Gradient norm"
    ]
    assert found[0] == BAD and "highest 2.2 (step 240), median 0.2" in found[1]
    assert marks(healthy_log(gradient_norm__tokenizer=lambda s: 1.8 if s == 240 else 0.2))[
        "Gradient norm"
    ][0] == GOOD  # fmt: skip


def test_the_discriminators_gradient_is_no_peak():
    rows = healthy_log(gradient_norm__discriminator=lambda s: 9.0 if s == 240 else 0.2)
    assert marks(rows)["Gradient norm"][0] == GOOD


def test_what_is_missing_is_unknown_and_no_error():
    found = marks([{"step": 20, "psnr/stills": None}], used_percent=None, discriminator_start=100)
    assert {mark for mark, _ in found.values()} == {UNKNOWN}
    assert "at step 20 of 400" in found["Length"][1]
    assert marks([], used_percent=None)


def write_run(path, discriminator=True, **changes):
    path.mkdir(parents=True)
    config = {
        "task": "vision_tokenizer",
        "model": {"codebook_size": 2048, "temporal_downsample_factor": 2},
        "loss": {"adversarial": {"weight": 0.02 * discriminator, "start": 100}},
        "data": {
            "root": "emoji",
            "groups": [{"name": "stills", "kind": "stills", "size": 64, "count": 8}],
        },
        "run": {"steps": STEPS},
    }
    (path / "config.json").write_text(json.dumps(config))
    lines = [json.dumps(row) + "\n" for row in healthy_log(**changes)]
    (path / "metrics.jsonl").write_text("".join(lines))
    return path


def add_the_rest(path):
    seconds = {"initialise": 100.0, "step": 5300.0}
    line = {"step": STEPS, "began": 0.0, "from": 0, "seconds": seconds}
    (path / "goodput.jsonl").write_text(json.dumps(line) + "\n")
    start = {
        "time": "2026-01-02T03:04:05+00:00",
        "command": ["/some/where/python", "-m", "emu3_jax.train", "--config=a b.py"],
        "devices": "2 x cpu",
        "revision": "0123456789abcdef+changes",
    }
    (path / "starts.jsonl").write_text(json.dumps(start) + "\n")
    for step, grey in ((100, 10), (400, 200)):
        sheet = np.full((8, 8, 3), grey, np.uint8)
        media.write_png(path / "images" / f"step_{step:06d}" / "reconstruction_images.png", sheet)
    media.write_png(
        path / "evaluation" / "codebook_health_usage.png", np.zeros((8, 8, 3), np.uint8)
    )
    results = {"reconstruction": {"metrics": {"perceptual_images": 0.0625}}}
    (path / "evaluation" / "results.json").write_text(json.dumps({"results": results}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "full", gradient_norm__tokenizer=lambda s: 9.0 if s == 160 else 0.2)
    add_the_rest(folder / "full")
    write_run(folder / "no <gan>", discriminator=False)
    runs = [folder / "full", folder / "no <gan>"]
    tokenizer_report.main([*map(str, runs), f"--output={folder / 'page.html'}"])
    return folder, (folder / "page.html").read_text()


def test_the_page_is_one_file_that_loads_nothing(made):
    _, page = made
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert "<script" not in page and "no &lt;gan&gt;" in page and "no <gan>" not in page


def test_figures_settings_and_commands(made):
    _, page = made
    row = re.search(r"<tr><td>full</td><td>400</td>.*?</tr>", page)[0]
    cells = re.findall(r"<td>(.*?)</td>", row)
    # PSNR, perceptual distance (offline), codes, frames/s, hours: 5,400 s.
    assert cells == ["full", "400", "<b>25.00</b>", "0.0625*", "<b>99.5</b>", "10.0", "1.50"]
    assert "hinge, adaptive 0.02 after step 100" in page
    assert "<code>loss.adversarial.weight</code></td><td>0.02</td><td>0.0</td>" in page
    assert "python -m emu3_jax.train &#x27;--config=a b.py&#x27;" in page
    assert "/some/where" not in page
    assert "highest 9 (step 160)" in page and "full: look at Gradient norm" in page
    assert "its command was not recorded" in page


def test_curves_of_all_runs_share_a_chart(made):
    _, page = made
    card = re.search(r"<h3>Dead codes</h3>(.*?)</svg>", page)[1]
    assert {"--c0", "--c1"} <= set(re.findall(r"stroke=\"var\((--c\d)", card))
    both = re.search(r"<h3>Dead for stills, dashed: for clips</h3>(.*?)</svg>", page)[1]
    assert both.count('stroke-dasharray="5 3"') == 2
    assert "Not logged:" in page and "Weight of the discriminator, stills" in page


def test_the_last_images_are_in_the_page_as_they_are(made):
    folder, page = made
    images = tokenizer_run.read(folder / "full").images
    assert [p.text for p in images] == [
        "Stills above their reconstructions at step 400",
        "Share of each code in all tokens, offline evaluation",
    ]
    for image in images:
        assert base64.b64encode(image.path.read_bytes()).decode() in page


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            '{"task": "pretrain"}',
            "is a run of the task pretrain, this report is about vision_token",
        ),
        (None, "is not a run directory"),
        ('{"task": "vision_tokenizer"}', "metrics.jsonl does not exist"),
    ],
)
def test_a_directory_that_is_no_such_run_is_one_sentence(tmp_path, capsys, config, message):
    if config:
        (tmp_path / "config.json").write_text(config)
        if "pretrain" in config:
            (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(SystemExit) as stop:
        tokenizer_report.main([str(tmp_path), f"--output={tmp_path / 'page.html'}"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
