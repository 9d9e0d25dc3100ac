"""The generate command, model directories and the four tasks, on a tiny random model."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny_models import GUIDED, LIMITS

from emu3_jax.data import media
from emu3_jax.generate import codec, modalities
from emu3_jax.generate import job as job_lib
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import Job, JobError
from emu3_jax.generate.job_runner import METADATA_KEY
from emu3_jax.interop import bundle as bundle_lib
from emu3_jax.interop.vision import tokenizer_files


def test_a_bundle_survives_its_directory(tiny_directories, tiny_bundle, tmp_path):
    bundle_lib.save_bundle(tmp_path / "again", tiny_bundle)
    given = dataclasses.replace(tiny_bundle, learnt=("chat", "text"))
    bundle_lib.save_bundle(tmp_path / "again", given)
    again = bundle_lib.load_bundle(tmp_path / "again")
    assert again.vocab == tiny_bundle.vocab and again.max_context == 200
    assert again.learnt == bundle_lib.read_learnt(tmp_path / "again") == ("chat", "text")
    assert bundle_lib.load_language(tiny_directories / "language").learnt is None
    assert again.grammar.video_format == tiny_bundle.grammar.video_format
    jax.tree.map(np.testing.assert_array_equal, again.variables, tiny_bundle.variables)
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_directories_that_do_not_fit_are_refused(tiny_directories, tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        bundle_lib.load_bundle(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        bundle_lib.load_bundle(tmp_path)
    config, variables = tokenizer_files.load(tiny_directories / "vision")
    variables["params"]["quantize"]["embedding"] += 1
    tokenizer_files.save(tmp_path / "other", config, variables)
    with pytest.raises(
        ValueError, match="other is the vision tokenizer .*, but .*language was trained with"
    ):
        bundle_lib.load_bundle(tiny_directories / "language", tmp_path / "other")


def test_an_image_can_be_generated_again_from_its_metadata(tiny_runner):
    job = Job("text_to_image", ("a cat", "a dog"), sizes=((2, 3),), samples=2, sampling=GUIDED,
              negative_prompt="bad")  # fmt: skip
    files = tiny_runner.run(job, report=lambda line: None)
    assert [f.name for f in files] == [f"image_0000{i}.png" for i in range(4)]
    original = np.asarray(PILImage.open(files[2]))
    assert original.shape == (4, 6, 3)
    stored = json.loads(PILImage.open(files[2]).text[METADATA_KEY])
    assert (stored["prompt"], stored["first"], stored["seed"]) == ("a dog", 2, 4)
    again = Job(
        stored["task"],
        (stored["prompt"],),
        sizes=(job_lib.parse_size(stored["size"], stored["task"]),),
        first=stored["first"],
        sampling=Sampling(**{k: stored[k] for k in vars(GUIDED)}),
        negative_prompt=stored["negative_prompt"],
    )
    before = [f.read_bytes() for f in files]
    (file,) = tiny_runner.run(again, report=lambda line: None)
    np.testing.assert_array_equal(np.asarray(PILImage.open(file)), original)
    assert file.name == "image_00004.png"  # numbers go on; the first four are as they were
    assert [f.read_bytes() for f in files] == before and len(set(before)) == 4


def test_a_clip_is_drawn_and_read(tiny_runner):
    job = Job("text_to_video", ("wave",), sizes=((2, 2, 2),), fps=4.0)
    webp, mp4, settings = tiny_runner.run(job, report=lambda line: None)
    for file in (webp, mp4):
        frames, fps, seconds = media.read_video(file)
        assert frames.shape == (8, 4, 4, 3) and fps == pytest.approx(4) and seconds == 2
    assert json.loads(settings.read_text())["seconds"] == 2

    job = Job(
        "video_to_text", ("What?",), (str(webp),), sampling=Sampling(temperature=0), max_new=5
    )
    (file,) = tiny_runner.run(job, report=lambda line: None)
    line = json.loads(file.read_text())
    assert line["size"] == "2x2x2" and line["question"] == "What?" and isinstance(line["text"], str)


def test_texts_equal_the_library_call(tiny_runner, tiny_bundle, tmp_path):
    rng = np.random.default_rng(0)
    names = []
    for i, shape in enumerate([(4, 6, 3), (6, 4, 3)]):
        names.append(str(tmp_path / f"{i}.png"))
        media.write_png(names[-1], rng.integers(0, 255, shape, dtype=np.uint8))
    greedy = Sampling(temperature=0)
    job = Job("image_to_text", (), tuple(names), sampling=greedy, max_new=6)
    (file,) = tiny_runner.run(job, report=lambda line: None)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    codes = codec.encode(tiny_bundle, [media.read_image(name) for name in names], LIMITS)
    assert [c.shape for c in codes] == [(2, 3), (3, 2)]
    options = modalities.Options(greedy, max_new=6)
    assert [line["text"] for line in lines] == modalities.caption_images(
        tiny_bundle, codes, options
    )
    pieces = ["", ""]

    def stream(position, piece):
        pieces[position] += piece

    streaming = dataclasses.replace(options, stream=stream)
    assert modalities.caption_images(tiny_bundle, codes, streaming) == pieces
    assert pieces == [line["text"] for line in lines]
    chat = Job("image_to_text", ("Who?",), (names[0],), sampling=greedy, chat=True, max_new=6)
    tiny_runner.run(chat, report=lambda line: None)
    after = [json.loads(line) for line in file.read_text().splitlines()]
    assert after[:2] == lines and after[2]["chat"] is True


def test_codes_of_drawing_calls(tiny_bundle):
    codes = modalities.text_to_image(
        tiny_bundle, ["a", "b", "c"], 2, 3, modalities.Options(batch_size=2)
    )
    assert codes.shape == (3, 2, 3) and codes.min() >= 0 and codes.max() < 32
    clips = modalities.text_to_video(tiny_bundle, ["a"], 2, 2, 3, 8.0, 1.0)
    assert clips.shape == (1, 2, 2, 3)
    assert modalities.text_to_image(tiny_bundle, [], 2, 3).shape == (0, 2, 3)
    with pytest.raises(ValueError, match="context of 200"):
        modalities.text_to_image(tiny_bundle, ["a"], 20, 20)


def test_one_text_is_no_list_of_texts(tiny_bundle):
    with pytest.raises(ValueError, match=r"captions must be a list of texts.* pass \['red'\]"):
        modalities.text_to_image(tiny_bundle, "red", 2, 2)
    with pytest.raises(ValueError, match="questions must be a list of texts"):
        modalities.caption_images(tiny_bundle, [np.zeros((2, 2), np.int32)] * 3, questions="why")


@pytest.mark.parametrize(
    "words, fields",
    [
        ("task must be one of", {"task": "image_to_image"}),
        ("needs a prompt", {"prompts": ()}),
        ("reads no files", {"media": ("x.png",)}),
        ("needs a size", {"sizes": ()}),
        ("below 1", {"sizes": ((0, 4),)}),
        ("3 sizes for 2 prompts", {"prompts": ("a", "b"), "sizes": ((1, 1),) * 3}),
        ("clips must be", {"clips": "four"}),
        ("guidance 1", {"negative_prompt": "bad"}),
        ("samples are equal", {"samples": 2, "sampling": Sampling(temperature=0)}),
        ("frames per second", {"task": "text_to_video", "sizes": ((1, 2, 2),)}),
        ("at least one image", {"task": "image_to_text", "sizes": ()}),
        ("leave the size out", {"task": "image_to_text", "media": ("x",)}),
        ("2 questions for 3 files", {"task": "image_to_text", "sizes": (), "media": ("x",) * 3,
                                     "prompts": ("a", "b")}),
        ("Guidance is for drawing", {"task": "image_to_text", "sizes": (), "media": ("x",),
                                     "sampling": GUIDED}),
        ("needs a question", {"task": "image_to_text", "sizes": (), "media": ("x",), "chat": True,
                              "prompts": ()}),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(words, fields):
    good = {"task": "text_to_image", "prompts": ("a",), "sizes": ((2, 2),)}
    Job(**good)
    with pytest.raises(JobError, match=words):
        Job(**(good | fields))


def test_sizes_from_the_options():
    sizes_of = job_lib.sizes_of
    assert sizes_of("text_to_image", ["8x9", "2x3"], [], 0) == ((8, 9), (2, 3))
    assert sizes_of("text_to_video", ["2x8x9"], [], 0) == ((2, 8, 9),)
    assert sizes_of("text_to_image", [], ["4:3"], 0) == ((78, 104),)
    assert sizes_of("text_to_image", [], ["4:3", "1:1"], 0, default_area=512 * 512) == (
        (55, 74), (64, 64),
    )  # fmt: skip
    assert sizes_of("text_to_image", [], [], 64 * 64) == ((8, 8),)
    for sizes, ratios in ((["8by9"], []), (["8x9"], ["1:1"]), ([], ["wide"])):
        with pytest.raises(ValueError, match="size|ratio"):
            sizes_of("text_to_image", sizes, ratios, 0)


def test_pixel_limits_come_from_flags_then_model_then_file_then_release(tmp_path):
    assert codec.pixel_limits(tmp_path, 8) == media.PixelLimits()
    (tmp_path / codec.PREPROCESSOR_FILE).write_text('{"min_pixels": 64, "max_pixels": 4096}')
    assert codec.pixel_limits(tmp_path, 8) == media.PixelLimits(64, 4096, 8)
    trained = {"min_pixels": 256, "max_pixels": 1024, "fps": 2.0}  # of the language model
    assert codec.pixel_limits(tmp_path, 8, trained=trained) == media.PixelLimits(256, 1024, 8)
    assert codec.pixel_limits(tmp_path, 4, 100, 200, trained) == media.PixelLimits(100, 200, 4)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "emu3_jax.generate", *arguments],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip


def test_the_command_line(tiny_directories, tmp_path):
    common = [
        f"--model={tiny_directories / 'language'}",
        f"--vision_tokenizer={tiny_directories / 'vision'}",
        f"--output={tmp_path / 'out'}",
    ]
    done = command(*common, "--task=text_to_image", "--prompt=a cat", "--size=2x2", "--samples=2")
    assert done.returncode == 0, done.stderr
    assert "cache" in done.stdout and "image_00001.png" in done.stdout
    stored = json.loads(PILImage.open(tmp_path / "out" / "image_00001.png").text["emu3_jax"])
    assert (stored["guidance"], stored["top_k"]) == (3.0, 2048)
    sheet = media.read_image(tmp_path / "out" / "images_00000-00001.png")
    one = media.read_image(tmp_path / "out" / "image_00001.png")
    np.testing.assert_array_equal(sheet[4:8, 12:16], one)  # the second of a row, margins of 4

    small = ("--task=text_to_image", "--prompt=a cat", "--size=2x2", "--first=7")
    done = command(*common, *small, "--quantize=weights,cache")
    assert done.returncode == 0, done.stderr
    stored = json.loads(PILImage.open(tmp_path / "out" / "image_00007.png").text["emu3_jax"])
    assert stored["quantize"] == ["weights", "cache"]
    wrong = command(*common, *small, "--quantize=cache,head")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "--quantize takes weights and cache, not 'head'" in wrong.stderr

    wrong = command(*common, "--task=text_to_image", "--prompt=a cat", "--video=x.mp4")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "not --video" in wrong.stderr
