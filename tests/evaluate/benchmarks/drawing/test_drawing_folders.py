"""Folders of drawn samples: exactly the released layout, or one sentence."""

import json

import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.evaluate.benchmarks.drawing.drawing import Prompt
from emu3_jax.evaluate.benchmarks.registry import DRAWINGS

RNG = np.random.default_rng(0)


def drawn(folder, benchmark, prompts, shape=(8, 8)):
    """Noise as every sample; returns the images by path."""
    images = {}
    for prompt in prompts:
        for sample in range(prompt.samples):
            name = benchmark.path(prompt, sample)
            images[name] = RNG.integers(0, 256, (*shape, 3), np.uint8)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if prompt.kind == "video":
                (folder / name).write_bytes(b"clip")
            else:
                media.write_png(folder / name, images[name])
    return images


@pytest.fixture
def geneval():
    return DRAWINGS["geneval"], DRAWINGS["geneval"].read(None, "")[:3]


def test_geneval(tmp_path, geneval):
    benchmark, prompts = geneval
    images = drawn(tmp_path, benchmark, prompts)
    assert list(images)[:5] == [
        *(f"00000/samples/000{sample}.png" for sample in range(4)),
        "00001/samples/0000.png",
    ]
    for _ in range(2):
        benchmark.finish(tmp_path, prompts)
    (tmp_path / "00000/grid.png").write_bytes(b"an overview is allowed")
    benchmark.finish(tmp_path, prompts)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/depth.png").write_bytes(b"so is what scorers write")
    benchmark.finish(tmp_path, prompts)
    found = json.loads((tmp_path / "00001/metadata.jsonl").read_text())
    assert found == prompts[1].attributes["metadata"]
    assert found["prompt"] == prompts[1].text == "a photo of a cow"


def test_a_jpg_that_geneval_would_pass_over(tmp_path, geneval):
    benchmark, prompts = geneval
    drawn(tmp_path, benchmark, prompts)
    image = tmp_path / "00001/samples/0002.png"
    image.rename(image.with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"00001/samples/0002\.jpg is no sample .*0000\.png"):
        benchmark.finish(tmp_path, prompts)


def test_folders_that_geneval_would_count(tmp_path, geneval):
    benchmark, prompts = geneval
    drawn(tmp_path, benchmark, prompts)
    with pytest.raises(ValueError, match="00002 is of no prompt here, and the scorer would count"):
        benchmark.finish(tmp_path, prompts[:2])


def test_fewer_samples_than_stated(tmp_path, geneval):
    benchmark, prompts = geneval
    drawn(tmp_path, benchmark, prompts)
    (tmp_path / "00002/samples/0003.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 12 samples are missing.*00002/samples/0003\.png"):
        benchmark.finish(tmp_path, prompts)


def dpg(tmp_path, *names):
    (tmp_path / "data/prompts").mkdir(parents=True)
    for name in names:
        (tmp_path / f"data/prompts/{name}.txt").write_text(f"a long prompt {name}\n")
    return DRAWINGS["dpg_bench"], DRAWINGS["dpg_bench"].read(tmp_path / "data", "")


def test_dpg_bench_grids(tmp_path):
    benchmark, prompts = dpg(tmp_path, "12", "partiprompts0")
    assert [prompt.text for prompt in prompts] == [
        "a long prompt 12",
        "a long prompt partiprompts0",
    ]
    assert benchmark.read(tmp_path / "data/prompts", "")[1].id == "partiprompts0"
    run = tmp_path / "run"
    images = drawn(run, benchmark, prompts)
    for _ in range(2):
        benchmark.finish(run, prompts)
    grid = media.read_image(run / "grids/12.png")
    assert grid.shape == (16, 16, 3)
    for sample, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        expected = images[f"samples/12_{sample}.png"]
        assert np.array_equal(grid[top : top + 8, left : left + 8], expected)
    (run / "grids/results.txt").write_text("the scorer writes here unless told otherwise")
    benchmark.finish(run, prompts)
    (run / "grids/13.png").write_bytes(b"of another run")
    with pytest.raises(ValueError, match=r"13\.png is of no prompt here"):
        benchmark.finish(run, prompts)


def test_dpg_bench_cuts_squares(tmp_path):
    benchmark, prompts = dpg(tmp_path, "12")
    drawn(tmp_path / "run", benchmark, prompts, shape=(8, 10))
    with pytest.raises(ValueError, match=r"grids/12\.png: the scorer cuts squares .* 8 x 10"):
        benchmark.finish(tmp_path / "run", prompts)


def test_dpg_bench_name_with_a_full_stop(tmp_path):
    with pytest.raises(ValueError, match="up to its first full stop"):
        dpg(tmp_path, "v1.5")


def test_dpg_bench_questions_of_other_prompts(tmp_path):
    (tmp_path / "data").mkdir()
    header = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    (tmp_path / "data/dpg_bench.csv").write_text(f"{header}13,x,1,0,global (x),Is it?\n")
    with pytest.raises(ValueError, match="'12' is only in one of .*; 2 prompts are"):
        dpg(tmp_path, "12")
    (tmp_path / "data/dpg_bench.csv").write_text(f"{header}12,x,1,none,global (x),Is it?\n")
    with pytest.raises(ValueError, match=r"dpg_bench\.csv, row 1: .*'none' must be numbers"):
        DRAWINGS["dpg_bench"].read(tmp_path / "data", "")


def compbench(tmp_path, *prompts, category="color"):
    (tmp_path / f"{category}_val.txt").write_text("\n".join(prompts) + "\n")
    return DRAWINGS["t2i_compbench"], DRAWINGS["t2i_compbench"].read(tmp_path, category)


def test_t2i_compbench_names_count_through_a_category(tmp_path):
    benchmark, prompts = compbench(tmp_path, "a red cat", "a blue dog.")
    names = list(drawn(tmp_path / "run", benchmark, prompts))
    assert names[0] == "color/samples/a red cat_000000.png"
    assert names[-1] == "color/samples/a blue dog._000019.png"
    benchmark.finish(tmp_path / "run", prompts)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a cat and/or a dog", r"color_val\.txt:2: .* has '/', which no file name can have"),
        ("a cat_dog", r"color_val\.txt:2: .* has '_'; .* would score 'a cat'"),
        ("long " * 80, r"color_val\.txt:2: the prompt has 399 characters; .* has 410 bytes"),
        ("", "the prompt color/0001 is empty"),
    ],
)
def test_t2i_compbench_prompts_that_names_cannot_carry(tmp_path, prompt, sentence):
    with pytest.raises(ValueError, match=sentence):
        compbench(tmp_path, "a red cat", prompt)


def test_t2i_compbench_categories(tmp_path):
    benchmark, _ = compbench(tmp_path, "a red cat")
    with pytest.raises(ValueError, match="version is 'colour', expected one of"):
        benchmark.read(tmp_path, "colour")
    with pytest.raises(ValueError, match=r"shape_val\.txt does not exist"):
        benchmark.read(tmp_path, "")


def test_vbench_draws_shared_prompts_once(tmp_path):
    benchmark = DRAWINGS["vbench"]
    rows = [
        {"prompt_en": "a still dog", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a cat", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
        {"prompt_en": "a cat", "dimension": ["aesthetic_quality", "imaging_quality"]},
    ]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(rows))
    prompts = benchmark.read(tmp_path, "")
    assert [(p.text, p.samples, p.kind) for p in prompts] == [
        ("a still dog", 25, "video"),
        ("a cat", 5, "video"),
    ]
    assert prompts[1].attributes["dimensions"] == ["color", "aesthetic_quality", "imaging_quality"]
    names = list(drawn(tmp_path / "run", benchmark, prompts))
    assert names[24:26] == ["videos/a still dog-24.mp4", "videos/a cat-0.mp4"]
    benchmark.finish(tmp_path / "run", prompts)
    assert [p.text for p in benchmark.read(tmp_path, "color")] == ["a cat"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt_en": "a cat", "dimension": ["colour"]}, r"entry 0: \['colour'\] is none of"),
        ({"prompt_en": "a/b", "dimension": ["color"]}, "entry 0: .* has '/'"),
        ({"prompt_en": "a" * 400, "dimension": ["color"]}, "entry 0: .* has 400 characters"),
        ({"dimension": ["color"]}, "entry 0: the field 'prompt_en' is missing"),
    ],
)
def test_vbench_entries(tmp_path, row, sentence):
    (tmp_path / "info.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=sentence):
        DRAWINGS["vbench"].read(tmp_path / "info.json", "")


def test_coco_captions_keep_commas_and_quotes(tmp_path):
    benchmark = DRAWINGS["coco30k"]
    (tmp_path / "coco_captions.csv").write_text('Prompt\nA dog, a cat.\n"WWF" on a wall\n')
    prompts = benchmark.read(tmp_path, "")
    assert [prompt.text for prompt in prompts] == ["A dog, a cat.", '"WWF" on a wall']
    names = list(drawn(tmp_path / "run", benchmark, prompts))
    assert names == ["images/00000.png", "images/00001.png"]
    benchmark.finish(tmp_path / "run", prompts)
    (tmp_path / "run/images/00001.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 samples are missing"):
        benchmark.finish(tmp_path / "run", prompts)


def test_the_shipped_lists():
    prompts = DRAWINGS["geneval"].read(None, "")
    tasks = [prompt.attributes["tag"] for prompt in prompts]
    counts = {task: tasks.count(task) for task in dict.fromkeys(tasks)}
    assert counts == {
        "single_object": 80, "two_object": 99, "counting": 80,
        "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip
    prompts = DRAWINGS["partiprompts"].read(None, "")
    assert len(prompts) == 1632
    assert sum(prompt.text.startswith('"G I G G L E" painted') for prompt in prompts) == 1
    assert DRAWINGS["partiprompts"].path(prompts[7], 0) == "images/00007.png"
    several = Prompt("00007", "a cat", 4)
    assert DRAWINGS["partiprompts"].path(several, 3) == "images/00007_3.png"


@pytest.mark.parametrize("name", ["coco30k", "dpg_bench", "t2i_compbench", "vbench"])
def test_prompts_that_are_not_shipped(name):
    with pytest.raises(ValueError, match="the prompts are not shipped; data must name"):
        DRAWINGS[name].read(None, "")


@pytest.mark.parametrize("name", DRAWINGS)
def test_registered(name):
    benchmark = DRAWINGS[name]
    assert (benchmark.results is None) == (benchmark.headline == "")
