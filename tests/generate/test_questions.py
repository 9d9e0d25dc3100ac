"""What a question is about: parts of clips, files that cannot be used, and what a model learnt."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from films import clip_pixels, film
from tiny_models import LIMITS

from emu3_jax.data import media
from emu3_jax.generate import modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import Job, JobError
from emu3_jax.generate.job_runner import read_media, unlearnt

GREEDY = Sampling(temperature=0)


def quiet(line):
    del line


def reading(*files, **fields):
    return Job("video_to_text", media=files, sampling=GREEDY, max_new=2, **fields)


@pytest.fixture
def clip(tmp_path):
    """A film of sixteen frames, eight per second."""
    (tmp_path / "clip.mp4").write_bytes(film())
    return str(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    "fields, first, last",
    [
        ({}, 0, 16),
        ({"start": 0.5}, 4, 16),
        ({"end": 0.5}, 0, 4),
        ({"start": 0.5, "end": 1.75}, 4, 12),  # ten frames, of which two latent frames are whole
        ({"start": 0.5, "max_frames": 4}, 4, 8),
    ],
)
def test_of_a_clip_the_part_asked_for_is_read_and_written_down(
    tiny_runner, tiny_bundle, clip, fields, first, last
):
    job = reading(clip, **fields)
    (shown,) = read_media(job, LIMITS, tiny_bundle.vision.config)
    whole, _, _ = media.read_video(clip)
    size = media.smart_resize(*whole.shape[1:3], LIMITS)
    np.testing.assert_array_equal(shown.pixels, media.resize(whole[first:last], *size))
    assert shown.fps == pytest.approx(8)
    (file,) = tiny_runner.run(job, quiet)
    line = json.loads(file.read_text())
    stated = {name: line[name] for name in ("start", "end", "max_frames")}
    assert stated == {"start": 0.0, "end": None, "max_frames": None} | fields
    assert line["size"] == f"{(last - first) // 4}x3x4"


@pytest.mark.parametrize(
    "words, task, fields",
    [
        ("start, end and max_frames are for reading clips", "image_to_text", {"end": 1.0}),
        ("start, end and max_frames are for reading clips", "image_to_text", {"max_frames": 1}),
        ("start must be at least 0", "video_to_text", {"start": -1.0}),
        ("start must be at least 0", "video_to_text", {"start": float("inf")}),
        ("end must be after start, but is 1 and 2 s", "video_to_text", {"start": 2.0, "end": 1.0}),
        ("max_frames must be at least 1", "video_to_text", {"max_frames": 0}),
        (r"The question 'a. ASSISTANT: b' contains", "image_to_text",
         {"chat": True, "prompts": ("a. ASSISTANT: b",)}),
        (r"The prompt 'a\\udcff' is not valid UTF-8", "image_to_text", {"prompts": ("a\udcff",)}),
    ],
)  # fmt: skip
def test_parts_and_questions_that_cannot_be(words, task, fields):
    with pytest.raises(ValueError, match=words):
        Job(task, **({"media": ("x",)} | fields))
    with pytest.raises(JobError, match="for reading clips"):
        Job("text_to_video", ("a",), sizes=((1, 2, 2),), fps=4.0, start=1.0)


def test_a_file_that_cannot_be_used_is_named(tiny_bundle, tmp_path, clip):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    media.write_png(tmp_path / "long.png", np.zeros((4, 64, 3), np.uint8))
    media.write_webp(tmp_path / "short.webp", clip_pixels(3), 8)
    config = tiny_bundle.vision.config
    image = Job("image_to_text", media=(str(tmp_path / "long.png"),))
    for job, words in (
        (image, "long.png: an image of 64x4 pixels has the aspect ratio"),
        (dataclasses.replace(image, media=(str(tmp_path / "cut.png"),)), "cut.png: "),
        (
            reading(clip, str(tmp_path / "short.webp")),
            r"short.webp: .* smaller than one token",
        ),
        (reading(clip, start=1.9), "clip.mp4: .* smaller than one token"),
        (reading(clip, start=5.0), "clip.mp4: the clip ends at 2.000 s, before the start 5 s"),
    ):
        with pytest.raises(media.MediaError, match=words):
            read_media(job, LIMITS, config)


def test_a_request_that_is_too_long_is_named(tiny_runner, tiny_bundle, clip, tmp_path):
    bundle = dataclasses.replace(tiny_bundle, max_context=40)
    runner = dataclasses.replace(tiny_runner, bundle=bundle)
    media.write_png(tmp_path / "small.png", np.zeros((4, 4, 3), np.uint8))
    job = reading(clip)
    with pytest.raises(ValueError, match=r"clip.mp4: 63 tokens are needed .* context of 40"):
        runner.run(dataclasses.replace(job, end=0.5, prompts=("a long question" * 2,)), quiet)
    drawing = Job("text_to_image", ("a", "a cat on a mat"), sizes=((1, 2), (4, 4)))
    with pytest.raises(ValueError, match="The prompt 'a cat on a mat' at 4x4: .* tokens are need"):
        runner.run(drawing, quiet)
    codes = [np.zeros((2, 2), np.int32), np.zeros((8, 8), np.int32)]
    with pytest.raises(ValueError, match="Image 1: .* tokens are needed"):
        modalities.caption_images(bundle, codes)


def test_a_bad_file_is_named_before_the_model_is_loaded(tiny_directories, tmp_path):
    """The weights of this model cannot be read, but that is not what the command says."""
    model = tmp_path / "model"
    model.mkdir()
    for file in (tiny_directories / "language").iterdir():
        (model / file.name).write_bytes(b"" if "safetensors" in file.name else file.read_bytes())
    (tmp_path / "photo.jpg").write_text("no photo")
    done = subprocess.run(
        [sys.executable, "-m", "emu3_jax.generate", f"--model={model}",
         f"--vision_tokenizer={tiny_directories / 'vision'}", f"--output={tmp_path / 'out'}",
         "--task=image_to_text", f"--image={tmp_path / 'photo.jpg'}"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "photo.jpg: not an image" in done.stderr


@pytest.mark.parametrize(
    "learnt, task, chat, warns",
    [
        (("text_to_image", "text"), "image_to_text", False, "never trained on image_to_text"),
        (("image_to_text", "text"), "image_to_text", False, ""),
        (("image_to_text", "text"), "image_to_text", True, "never trained on chats"),
        (("chat", "image_to_text"), "image_to_text", True, ""),
        (("text", "text_to_image"), "text_to_video", False, "never trained on text_to_video"),
        (("document",), "image_to_text", True, ""),  # of any form, perhaps of this one
        (None, "image_to_text", True, ""),  # not known, as of released weights
    ],
)
def test_what_a_model_never_learnt_is_said(learnt, task, chat, warns):
    job = Job(task, ("a",), ("x",), chat=chat) if task == "image_to_text" else Job(
        task, ("a",), sizes=((1, 2, 2),), fps=1.0)  # fmt: skip
    warning = unlearnt(job, learnt)
    assert (warns in warning) if warns else warning == ""
    assert not warning or f"it was trained on {', '.join(learnt)}" in warning


def test_the_warning_is_one_line_and_the_job_goes_on(tiny_runner, tiny_bundle, tmp_path):
    media.write_png(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8))
    job = Job("image_to_text", ("Who?",), (str(tmp_path / "x.png"),), sampling=GREEDY, chat=True)
    for learnt, warned in ((None, 0), (("image_to_text",), 1)):
        lines = []
        bundle = dataclasses.replace(tiny_bundle, learnt=learnt)
        dataclasses.replace(tiny_runner, bundle=bundle).run(job, lines.append)
        assert len(lines) == 1 + warned
        assert lines[0].startswith("Warning: the model was never") == bool(warned)
