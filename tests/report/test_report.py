"""The report and its charts: self-contained, complete, safe, and right about numbers."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from emu3_jax.figures import chart
from emu3_jax.report import pretraining_page, tables
from emu3_jax.report.pretraining_page import Curve, Drawn, Rebuilt, ReportInputs, Samples, Written

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
CLIP = RNG.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
RESULTS = {
    "emoji_retrieval": {
        "recall_at_10": 57.25,
        "recall_at_10_chance": 2.9,
        "recall_at_10_ceiling": 99.5,
        "gallery": 339.0,
    },
    "reconstruction": {"psnr_images": 25.31},
}


def inputs(**changes):
    rows = [{"step": s, "loss/text": 5 - s / 100, "loss/image": 7.0} for s in range(10, 200, 10)]
    rows[5] |= {"validation/likelihood/nats_text": 4.5}
    rows[6] |= {"loss/image": None}
    samples = Samples(
        "The shipped model",
        "drawn from <captions> & words",
        (Drawn("a <b>cat</b>", IMAGE, IMAGE),),
        (Drawn("runs", CLIP, CLIP, 1.0),),
        (Written(IMAGE, "man: dark skin tone", "man: light skin tone"),),
    )
    values = dict(
        title="Demo",
        summary="Two words.",
        about=("First.",),
        stream=(("BOS", "text"), ("324", "image")),
        facts=(("12 M", "parameters"),),
        samples=(samples,),
        curves=(Curve("run", rows, (70,)),),
        reconstructions=(Rebuilt(IMAGE, IMAGE, "cat"),),
        evaluated=(("shipped", RESULTS),),
        stages=(("Pretrain", 190.0),),
        commands=(("Pretrain", "python -m emu3_jax.train --a=<b>"),),
        credits=("Images: MIT.",),
    )
    return ReportInputs(**(values | changes))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = pretraining_page.build_report(
        inputs(), tmp_path_factory.mktemp("report") / "report.html"
    )
    return path.read_text()


def test_the_page_loads_nothing(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(s.startswith(("data:image/webp;base64,", "#")) for s in sources)
    assert "@import" not in page
    assert "url(" not in page
    anchors = [s[1:] for s in sources if s.startswith("#")]
    assert all(f'id="{anchor}"' in page for anchor in anchors)


def test_text_is_escaped(page):
    assert "<b>cat</b>" not in page
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page
    assert "--a=&lt;b&gt;" in page


def test_every_part_is_there(page):
    for text in ("What you are looking at", "Images from captions", "Clips from captions",
                 "Captions from images", "resumed at 70", "Text tokens", "Image tokens",
                 "57.2", "99.5", "among 339 held-out", "25.31", "3 min 10 s", "✗ tone",
                 "✓ name"):  # fmt: skip
        assert text in page, text
    assert "Video tokens" not in page


def test_parts_without_content_are_left_out(tmp_path):
    path = pretraining_page.build_report(
        ReportInputs("Demo", "Nothing yet."), tmp_path / "report.html"
    )
    assert "<section" not in path.read_text()


def test_a_failed_build_leaves_the_old_report(tmp_path):
    path = pretraining_page.build_report(inputs(), tmp_path / "report.html")
    before = path.read_bytes()
    broken = Samples("x", "y", (Drawn("z", None),))
    with pytest.raises(AttributeError):
        pretraining_page.build_report(inputs(samples=(broken,)), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_line_chart_puts_points_where_they_belong():
    line = chart.Series("a", ((0, 1.0), (10, 3.0), (5, float("nan")), (20, 2.0)), dots=True)
    svg = ElementTree.fromstring(chart.line_chart([line], "step", "loss", [(10, "here")]))
    circles = svg.findall("{*}circle")
    xs = [float(c.get("cx")) for c in circles]
    ys = [float(c.get("cy")) for c in circles]
    assert len(circles) == 3
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1)
    assert ys[1] < ys[2] < ys[0]
    assert ys[2] == pytest.approx((ys[0] + ys[1]) / 2, abs=0.1)
    assert [t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")][-1] == "here"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (1.1, 1.9, [1.2, 1.4, 1.6, 1.8]),
        (0, 1500, [0, 500, 1000, 1500]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert chart.ticks(low, high) == pytest.approx(expected)


def test_smoothing_is_a_mean_of_what_came_before():
    points = ((1, 2.0), (2, None), (3, 4.0), (4, 9.0))
    assert chart.smoothed(points, 2) == ((1, 2.0), (3, 3.0), (4, 6.5))


def test_tables_leave_out_what_nobody_measured():
    table = tables.evaluation_table([("a", RESULTS), ("b", {})], tables.LANGUAGE_MODEL)
    assert "Recall at 10" in table
    assert "Recall at 5" not in table
    assert "lookup" not in table
    assert table.count("57.2") == 2  # once as text, once as the label of its bar
    assert "nothing" in tables.evaluation_table([("a", {})], tables.VISION_TOKENIZER)
