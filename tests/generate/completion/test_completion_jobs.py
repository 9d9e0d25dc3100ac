"""The command's tasks whose files are part of what is drawn."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from films import clip_pixels
from PIL import Image as PILImage
from tiny_models import GUIDED, LIMITS

from emu3_jax.data import media
from emu3_jax.generate import CancelledError, codec, modalities
from emu3_jax.generate.completion import going_on, inpainting
from emu3_jax.generate.job import Job, JobError
from emu3_jax.generate.job_runner import METADATA_KEY, read_media, unlearnt
from emu3_jax.sequence import Video

OPTIONS = modalities.Options(GUIDED)


def quiet(line):
    del line


@pytest.fixture
def files(tmp_path):
    """Names of an image with masks, and of clips of eight and of four frames, four per second."""
    rng = np.random.default_rng(0)
    masks = {name: np.zeros((8, 6, 3), np.uint8) for name in ("black", "white", "mask")}
    masks["white"][:] = 255
    masks["mask"][3, 1] = 200  # within the second row of codes, the first column
    masks["other"] = np.full((6, 8, 3), 255, np.uint8)
    masks["a"] = rng.integers(0, 255, (8, 6, 3), dtype=np.uint8)
    for name, pixels in masks.items():
        media.write_png(tmp_path / f"{name}.png", pixels)
    for name, frames in (("long", 8), ("short", 4)):
        media.write_webp(tmp_path / f"{name}.webp", clip_pixels(frames, 4, 6), 4.0)
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def image_of(bundle, name):
    return codec.encode(bundle, [media.read_image(name)], LIMITS)[0]


def clip_of(bundle, name):
    frames, fps, seconds = media.read_video(name)
    return Video(codec.encode(bundle, [frames], LIMITS)[0], fps, seconds)


def test_clips_equal_the_library_calls(tiny_runner, tiny_bundle, files):
    image, clip = image_of(tiny_bundle, files["a"]), clip_of(tiny_bundle, files["long"])
    jobs = [
        (Job("image_to_video", ("a",), (files["a"],), ((2,),), 8.0),
         going_on.image_to_video(tiny_bundle, ["a"], [image], 2, 8.0, 1.0, OPTIONS), "2x4x3"),
        (Job("extend_video", ("a",), (files["long"],), ((3,),), context=1),
         going_on.extend_video(tiny_bundle, ["a"], [clip], 3, 1, OPTIONS), "3"),
        (Job("extend_video", (), (files["long"],), ((2,),), stride=1),
         going_on.extend_video(tiny_bundle, [""], [clip], 2, 2, OPTIONS, 1), "2"),
        (Job("predict_video", (), (files["long"],), ((2,),)),
         going_on.predict_video(tiny_bundle, [clip], 2, 2, OPTIONS), "2"),
    ]  # fmt: skip
    for job, codes, size in jobs:
        webp, _, settings = tiny_runner.run(dataclasses.replace(job, sampling=GUIDED), quiet)
        frames, fps, _ = media.read_video(webp)
        np.testing.assert_array_equal(frames, codec.decode(tiny_bundle, codes)[0])
        stored = json.loads(settings.read_text())
        assert (stored["size"], stored["source"]) == (size, job.media[0])
        assert stored["seconds"] == pytest.approx(len(frames) / fps)
        for name in ("context", "stride") if job.goes_on else ("first_frame",):
            assert stored[name] == getattr(job, name)


def test_answers_of_a_job_can_be_made_again_alone(tiny_runner, files):
    job = Job("extend_video", ("a",), (files["long"], files["short"]), ((2,),), context=1,
              samples=2, sampling=GUIDED)  # fmt: skip
    made = tiny_runner.run(job, quiet)[::3]
    alone = dataclasses.replace(job, media=job.media[1:], first=3, samples=1)
    again, *_ = tiny_runner.run(alone, quiet)
    assert again.read_bytes() == made[3].read_bytes() != made[2].read_bytes()


def test_inpainting_equals_the_library_call(tiny_runner, tiny_bundle, files):
    job = Job("inpaint", ("a",), (files["a"],), masks=(files["mask"],), samples=2, sampling=GUIDED)
    made = tiny_runner.run(job, quiet)
    codes = image_of(tiny_bundle, files["a"])
    keep = np.ones((4, 3), bool)
    keep[1, 0] = False
    expected = inpainting.inpaint(tiny_bundle, ["a"] * 2, [codes] * 2, [keep] * 2, OPTIONS)
    for file, pixels in zip(made, codec.decode(tiny_bundle, expected), strict=True):
        np.testing.assert_array_equal(media.read_image(file), pixels)
    stored = json.loads(PILImage.open(made[1]).text[METADATA_KEY])
    assert (stored["task"], stored["mask"], stored["first"]) == ("inpaint", files["mask"], 1)


def test_a_cancelled_job_writes_nothing(tiny_runner, files):
    stopped = dataclasses.replace(tiny_runner, options=modalities.Options(cancel=lambda: True))
    for job in (
        Job("extend_video", ("a",), (files["long"],), ((2,),), sampling=GUIDED),
        Job("image_to_text", media=(files["a"],)),
    ):
        with pytest.raises(CancelledError, match="cancelled: 0 of 1 requests are answered"):
            stopped.run(job, quiet)
    assert list(stopped.output.iterdir()) == []


@pytest.mark.parametrize(
    "words, fields",
    [
        ("first_frame must be inside or before, not 'after'", {"first_frame": "after"}),
        ("first_frame is for image_to_video, not for extend_video", {"first_frame": "before"}),
        ("context must be at least 1 latent frame, not 0", {"context": 0}),
        ("context is for extend_video and predict_video, not for video_to_video",
         {"task": "video_to_video", "context": 1}),
        ("extend_video takes one size", {"sizes": ((1,), (2,))}),
        ("extend_video needs a size in tokens, T.", {"sizes": ()}),
        ("extend_video needs a size in tokens, T.", {"sizes": ((1, 2, 3),)}),
        ("predict_video takes no prompt; extend_video does", {"task": "predict_video"}),
        ("A mask is for inpaint, not for extend_video", {"masks": ("m",)}),
        ("inpaint needs a mask .* 0 masks for 1 images", {"task": "inpaint", "sizes": ()}),
        ("inpaint needs a mask .* 2 masks for 3 images",
         {"task": "inpaint", "sizes": (), "masks": ("m", "n"), "media": ("x", "y", "z")}),
        ("inpaint takes the size from the image",
         {"task": "inpaint", "sizes": ((1, 2),), "masks": ("m",)}),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence(words, fields):
    good = {"task": "extend_video", "prompts": ("a",), "media": ("x",), "sizes": ((2,),)}
    Job(**good)
    with pytest.raises(JobError, match=words):
        Job(**(good | fields))


def test_files_that_do_not_go_together_are_one_sentence(tiny_bundle, files):
    config = tiny_bundle.vision.config
    both = (files["long"], files["short"])
    for job, words in (
        (Job("inpaint", media=(files["a"],), masks=(files["other"],)),
         "The mask of .*a.png has 8x6 pixels, the image 6x8."),
        (Job("inpaint", media=(files["a"],), masks=(files["black"],)),
         "The mask of .*a.png is black: nothing is to be drawn."),
        (Job("image_to_video", media=(files["a"],), sizes=((2, 3, 4),), fps=8.0),
         "a.png is 4x3 codes, so a clip that begins with it cannot have 3x4."),
        (Job("extend_video", media=both, sizes=((2,),)),
         "long.webp has 2 latent frames and .*short.webp 1; set context"),
        (Job("extend_video", media=both, sizes=((2,),), context=2),
         "short.webp has 1 latent frames, fewer than the 2 to be given."),
    ):  # fmt: skip
        with pytest.raises(media.MediaError, match=words):
            read_media(job, LIMITS, config)


def test_only_a_model_that_draws_can_complete():
    clip = Job("extend_video", media=("x",), sizes=((1,),))
    image = Job("inpaint", media=("x",), masks=("m",))
    assert "never trained on text_to_video, as extend_video needs" in unlearnt(clip, ("text",))
    assert "never trained on text_to_image, as inpaint needs" in unlearnt(image, ("text",))
    assert unlearnt(clip, ("text_to_video",)) == unlearnt(image, ("text_to_image",)) == ""


def test_the_command_line_inpaints_and_extends(tiny_directories, files, tmp_path):
    def command(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "emu3_jax.generate", f"--model={tiny_directories / 'language'}",
             f"--vision_tokenizer={tiny_directories / 'vision'}", f"--output={tmp_path / 'out'}",
             "--min_pixels=16", "--max_pixels=64", *arguments],
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr.splitlines()[-1:]

    assert command("--task=inpaint", f"--image={files['a']}", f"--mask={files['mask']}")[0] == 0
    assert (tmp_path / "out" / "image_00000.png").exists()
    video = f"--video={files['long']}"
    assert command("--task=extend_video", video, "--size=3", "--context=1", "--stride=2")[0] == 0
    stored = json.loads((tmp_path / "out" / "video_00000.json").read_text())
    assert (stored["context"], stored["stride"], stored["seconds"]) == (1, 2, 5.0)
    code, error = command("--task=predict_video", video, "--size=99", "--stride=99")
    assert code == 2
    assert "2 given and 99 new latent frames of clip 0 do not fit" in error[0]
