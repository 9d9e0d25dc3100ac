"""The command's tasks that draw after media: edits, first images, clips to go on from."""

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
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.sources import open_source
from emu3_jax.generate import codec, modalities
from emu3_jax.generate.job import Job, JobError, parse_size
from emu3_jax.generate.job_runner import METADATA_KEY, read_media, unlearnt, write_sheet
from emu3_jax.sequence import Document, Image, Text, Video
from emu3_jax.tokenize.prepare import Medium, Prepared, to_record


def quiet(line):
    del line


@pytest.fixture
def files(tmp_path):
    """Names of two images of other sizes, and of a clip of eight frames, four per second."""
    rng = np.random.default_rng(0)
    for name, shape in (("a", (4, 6, 3)), ("b", (6, 4, 3))):
        media.write_png(tmp_path / f"{name}.png", rng.integers(0, 255, shape, dtype=np.uint8))
    media.write_webp(tmp_path / "clip.webp", clip_pixels(8, 4, 6), 4.0)
    return {name: str(tmp_path / name) for name in ("a.png", "b.png", "clip.webp")}


def codes_of(bundle, *names):
    return codec.encode(bundle, [media.read_image(name) for name in names], LIMITS)


def clip_of(bundle, name):
    frames, fps, seconds = media.read_video(name)
    return Video(codec.encode(bundle, [frames], LIMITS)[0], fps, seconds)


def test_edits_equal_the_library_call(tiny_runner, tiny_bundle, files):
    a, b = files["a.png"], files["b.png"]
    job = Job("edit", ("redder", "both"), (a, f"{a},{b}"), samples=2, sampling=GUIDED,
              negative_prompt="bad")  # fmt: skip
    made = tiny_runner.run(job, quiet)
    first, second = map(Image, codes_of(tiny_bundle, a, b))
    prompts = [(first, Text("redder"))] * 2 + [(first, second, Text("both"))] * 2
    options = modalities.Options(GUIDED, negative_prompt="bad")
    sizes = [(2, 3)] * 2 + [(3, 2)] * 2  # of the last image
    expected = modalities.draw_images(tiny_bundle, prompts, sizes, options)
    for file, pixels in zip(made, codec.decode(tiny_bundle, expected), strict=True):
        np.testing.assert_array_equal(media.read_image(file), pixels)
    stored = [json.loads(PILImage.open(file).text[METADATA_KEY]) for file in made]
    assert [s["source"] for s in stored] == [a, a, f"{a},{b}", f"{a},{b}"]
    assert [s["size"] for s in stored] == ["2x3", "2x3", "3x2", "3x2"]
    assert (stored[3]["prompt"], stored[3]["first"], stored[3]["max_pixels"]) == ("both", 3, 64)
    alone = dataclasses.replace(job, prompts=("both",), media=(f"{a},{b}",), samples=1, first=3)
    (again,) = tiny_runner.run(alone, quiet)
    np.testing.assert_array_equal(media.read_image(again), media.read_image(made[3]))


@pytest.mark.parametrize("prompts", [(), ("wave",)])
def test_clips_after_an_image_or_a_clip_equal_the_library_call(
    tiny_runner, tiny_bundle, files, prompts
):
    text = tuple(map(Text, prompts))
    image = Image(codes_of(tiny_bundle, files["a.png"])[0])
    clip = clip_of(tiny_bundle, files["clip.webp"])
    options = modalities.Options(GUIDED)
    for job, before, size, fps in (
        (Job("image_to_video", prompts, (files["a.png"],), ((2,),), 8.0, first_frame="before"),
         image, (2, 2, 3), 8.0),
        (Job("video_to_video", prompts, (files["clip.webp"],)), clip, (2, 2, 3), 4.0),
        (Job("video_to_video", prompts, (files["clip.webp"],), ((1,),), end=1.0),
         Video(clip.codes[:1], 4.0, 1.0), (1, 2, 3), 4.0),
        (Job("video_to_video", prompts, (files["clip.webp"],), ((1, 3, 2),)), clip, (1, 3, 2), 4.0),
    ):  # fmt: skip
        job = dataclasses.replace(job, sampling=GUIDED)
        webp, _, settings = tiny_runner.run(job, quiet)
        seconds = {size[0]: size[0] * 4 / fps}
        drawn = modalities.draw_clips(tiny_bundle, [(*text, before)], [size], fps, seconds, options)
        frames, found_fps, _ = media.read_video(webp)
        assert found_fps == pytest.approx(fps)
        np.testing.assert_array_equal(frames, codec.decode(tiny_bundle, drawn)[0])
        stored = json.loads(settings.read_text())
        assert stored["size"] == "x".join(map(str, size)) and stored["source"] == job.media[0]
        assert stored["seconds"] == seconds[size[0]]
        assert stored.get("end", None) == job.end


def test_clips_may_be_coded_four_frames_at_a_time(tiny_runner, tiny_bundle, files):
    job = Job("video_to_video", media=(files["clip.webp"],), clips=vision_codec.INDEPENDENT)
    frames, _, _ = media.read_video(files["clip.webp"])
    shown = read_media(job, LIMITS, tiny_bundle.vision.config)
    (block,) = tiny_runner._blocks(job, shown)
    codes = codec.encode(tiny_bundle, [frames], LIMITS, vision_codec.INDEPENDENT)
    np.testing.assert_array_equal(block.codes, codes[0])


def documents(bundle, folder, spec, rows, blocks):
    """The documents that tokenizing makes of rows, with these codes as their media."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    media_of = [Medium(None, getattr(b, "fps", 0.0), getattr(b, "seconds", 0.0), b.codes)
                for b in blocks]  # fmt: skip
    for item in open_source(spec, folder).items(0):
        assert not item.problem
        record, _ = to_record(Prepared(item, media_of), "s", bundle.grammar)
        yield bundle.grammar.build(Document(record.segments)).ids


def test_prompts_are_those_of_the_training_data(
    tiny_runner, tiny_bundle, files, tmp_path, monkeypatch
):
    """Each document of the data begins with the prompt of its task; the answer follows."""
    seen = []

    def generate(model, params, requests, *rest, **options):
        seen.extend(requests)
        return [np.where(r.forced < 0, tiny_bundle.vocab.visual_start, r.forced) for r in requests]

    monkeypatch.setattr(modalities, "generate", generate)
    a, b = map(Image, codes_of(tiny_bundle, files["a.png"], files["b.png"]))
    clip = clip_of(tiny_bundle, files["clip.webp"])
    edit = {"source": ["a.png", "b.png"], "instruction": "both", "target": "b.png"}
    going_on = {"id": 0, "text": "wave", "video": "clip.webp"}
    begun = [{"text": "wave"}, {"image": "a.png"}, {"video": "clip.webp"}]
    cases = (
        (Job("edit", ("both",), (f"{files['a.png']},{files['b.png']}",)),
         "edit:rows.jsonl", edit, [a, b, b]),
        (Job("video_to_video", ("wave",), (files["clip.webp"],)),
         "continuation:1:rows.jsonl", going_on, [clip, clip]),
        (Job("video_to_video", (), (files["clip.webp"],)),
         "continuation:1:rows.jsonl", going_on | {"text": ""}, [clip, clip]),
        (Job("image_to_video", ("wave",), (files["a.png"],), ((2,),), 4.0, first_frame="before"),
         "rows.jsonl", {"id": 0, "segments": begun}, [a, clip]),
    )  # fmt: skip
    for job, spec, row, blocks in cases:
        tiny_runner.run(job, quiet)
        (document,) = documents(tiny_bundle, tmp_path, spec, [row], blocks)
        prompt = seen[-1].prompt
        np.testing.assert_array_equal(document[: len(prompt)], prompt)
        assert len(document) == len(prompt) + len(seen[-1].forced)


@pytest.mark.parametrize(
    "words, fields",
    [
        ("edit needs a prompt: the instruction", {"prompts": ()}),
        ("edit needs a prompt: the instruction", {"prompts": (" ",)}),
        ("edit needs at least one image file", {"media": ()}),
        ("The name of a file is missing in 'a.png,'", {"media": ("a.png,",)}),
        ("3 files for 2 prompts", {"prompts": ("a", "b"), "media": ("x", "y", "z")}),
        ("3 files for 2 sizes", {"media": ("x", "y", "z"), "sizes": ((1, 1), (2, 2))}),
        ("edit needs a size in tokens, HxW", {"sizes": ((1, 2, 2),)}),
        ("judged by a caption, but edit has none", {"candidates": 2}),
        ("chat template is for questions", {"chat": True}),
        ("for reading clips, not for edit", {"end": 1.0}),
        ("image_to_video needs a size in tokens, T or TxHxW", {"task": "image_to_video"}),
        ("image_to_video needs the frames", {"task": "image_to_video", "sizes": ((2,),)}),
        ("for reading clips", {"task": "image_to_video", "sizes": ((2,),), "fps": 1.0,
                               "max_frames": 4}),
        ("video_to_video needs a size in tokens", {"task": "video_to_video", "sizes": ((2, 2),)}),
        ("video_to_video needs at least one video", {"task": "video_to_video", "media": ()}),
        ("below 1", {"task": "video_to_video", "sizes": ((0,),)}),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence(words, fields):
    good = {"task": "edit", "prompts": ("redder",), "media": ("a.png",)}
    Job(**good)
    with pytest.raises(JobError, match=words):
        Job(**(good | fields))


def test_sizes_of_clips_may_be_lengths_alone():
    assert parse_size("2", "video_to_video") == (2,)
    with pytest.raises(JobError, match="size must be T or TxHxW, in tokens, not '2x'"):
        parse_size("2x", "image_to_video")


def test_clips_of_two_rates_are_named(tiny_bundle, files, tmp_path):
    media.write_webp(tmp_path / "fast.webp", clip_pixels(8, 4, 6), 8.0)
    job = Job("video_to_video", media=(files["clip.webp"], str(tmp_path / "fast.webp")))
    config = tiny_bundle.vision.config
    with pytest.raises(media.MediaError, match="clip.webp has 4 frames .*fast.webp has 8; set fps"):
        read_media(job, LIMITS, config)
    assert len(read_media(dataclasses.replace(job, fps=4.0), LIMITS, config)) == 2
    read_media(dataclasses.replace(job, task="video_to_text"), LIMITS, config)


@pytest.mark.parametrize("task", ["edit", "image_to_video", "video_to_video"])
def test_a_model_without_documents_is_named(task):
    job = Job(
        task, ("a",), ("x",), ((1,),) if "video" in task else (), fps=1.0,
        first_frame="before" if task == "image_to_video" else "inside",
    )  # fmt: skip
    learnt = ("image_to_text", "text_to_image", "text_to_video")
    assert f"what is drawn, as {task} needs; it was trained on image" in unlearnt(job, learnt)
    assert unlearnt(job, ("document", *learnt)) == unlearnt(job, None) == ""


def command(directories, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "emu3_jax.generate", f"--model={directories / 'language'}",
         f"--vision_tokenizer={directories / 'vision'}", *arguments],
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip


def test_the_command_line_edits(tiny_directories, files, tmp_path):
    out, limits = tmp_path / "out", ("--min_pixels=16", "--max_pixels=64")
    done = command(
        tiny_directories, "--task=edit", f"--image={files['a.png']},{files['b.png']}",
        "--prompt=both", "--samples=2", f"--output={out}", *limits,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "images_00000-00001.png" in done.stdout
    stored = json.loads(PILImage.open(out / "image_00001.png").text[METADATA_KEY])
    assert (stored["task"], stored["size"], stored["guidance"]) == ("edit", "3x2", 3.0)


def test_the_sheet_of_a_command_shows_what_was_read(tiny_bundle, files, tmp_path):
    a, b = files["a.png"], files["b.png"]
    pixels = [media.read_image(name) for name in (a, b, a, a)]  # [4, 6], [6, 4] pixels
    drawn = [tmp_path / f"image_0000{i}.png" for i in range(4)]
    for file, one in zip(drawn, pixels, strict=True):
        media.write_png(file, 255 - one)

    def tile(sheet, row, column, like):  # cells of 6 x 6 pixels, margins of 4
        top, left = 4 + 10 * row, 4 + 10 * column
        return sheet[top : top + like.shape[0], left : left + like.shape[1]]

    edits = Job("edit", ("x", "y"), (f"{a},{b}", a), samples=2, sampling=GUIDED)
    shown = read_media(edits, LIMITS, tiny_bundle.vision.config)
    sheet = media.read_image(write_sheet(edits, shown, drawn))
    assert sheet.shape[:2] == (24, 34)
    np.testing.assert_array_equal(tile(sheet, 0, 0, pixels[1]), pixels[1])  # the last of two
    np.testing.assert_array_equal(tile(sheet, 1, 2, pixels[3]), 255 - pixels[3])

    edits = Job("edit", ("x",), (a, b), sampling=GUIDED)
    shown = read_media(edits, LIMITS, tiny_bundle.vision.config)
    sheet = media.read_image(write_sheet(edits, shown, drawn[:2]))
    assert sheet.shape[:2] == (24, 24)
    np.testing.assert_array_equal(tile(sheet, 0, 1, pixels[1]), pixels[1])
    np.testing.assert_array_equal(tile(sheet, 1, 1, pixels[1]), 255 - pixels[1])


def test_files_for_another_task_are_one_sentence(tiny_directories, files, tmp_path):
    for task, flag, words in (
        ("text_to_image", "image", "text_to_image takes --prompt, not --image; edit does."),
        ("edit", "video", "edit takes --image, not --video."),
    ):
        done = command(
            tiny_directories, f"--task={task}", f"--{flag}={files['a.png']}", "--prompt=a",
            "--size=2x2", f"--output={tmp_path / 'out'}",
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert words in done.stderr
    assert not (tmp_path / "out").exists()
