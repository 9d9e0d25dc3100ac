"""The command's tasks chat and interleaved, on a tiny random model."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PILImage
from tiny_models import GUIDED, LIMITS

from emu3_jax.data import media
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import JobError
from emu3_jax.generate.open_ended import InterleavedOptions, interleave, open_ended_job
from emu3_jax.generate.open_ended.attached_images import encoded
from emu3_jax.generate.open_ended.interleaving import Written
from emu3_jax.generate.open_ended.open_ended_job import InterleavedJob
from emu3_jax.generate.open_ended.written_folder import free_folder, write_folder
from emu3_jax.sequence import Image, Text

PIXELS = (f"--min_pixels={LIMITS.min_pixels}", f"--max_pixels={LIMITS.max_pixels}")


@pytest.fixture
def photo(tmp_path):
    """A file of 2x3 codes."""
    file = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    media.write_png(file, pixels)
    return str(file)


def command(tiny_directories, *words, lines=""):
    """A finished generate command."""
    models = [
        f"--model={tiny_directories}/language",
        f"--vision_tokenizer={tiny_directories}/vision",
    ]
    return subprocess.run(
        [sys.executable, "-m", "emu3_jax.generate", *models, *PIXELS, *words],
        input=lines, capture_output=True, text=True,
    )  # fmt: skip


def test_a_folder_has_markdown_json_and_images(tmp_path):
    assert free_folder(tmp_path / "out").name == "document_00000"
    (tmp_path / "out" / "document_00007").mkdir(parents=True)
    folder = free_folder(tmp_path / "out")
    assert folder.name == "document_00008"
    segments = [Text("# Ä fox\n\nIt is "), Image([[1, 2]]), Image([[3]]), Text("red.")]
    pixels = [np.full((2, 4, 3), 9, np.uint8), np.full((2, 2, 3), 200, np.uint8)]
    write_folder(folder, Written(segments, True), pixels, {"first": 3})
    assert (folder / "document.md").read_text(encoding="utf-8") == (
        "# Ä fox\n\nIt is \n\n![](image_0.png)\n\n\n\n![](image_1.png)\n\nred.\n"
    )
    stored = json.loads((folder / "document.json").read_text(encoding="utf-8"))
    assert stored["is_finished"] is True and stored["first"] == 3
    assert stored["segments"][1:] == [
        {"image": "image_0.png", "size": "1x2", "codes": [[1, 2]]},
        {"image": "image_1.png", "size": "1x1", "codes": [[3]]},
        {"text": "red."},
    ]
    assert PILImage.open(folder / "image_0.png").size == (4, 2)


def test_documents_equal_the_library_call_whatever_their_company(tiny_bundle, tmp_path, photo):
    options = InterleavedOptions(Sampling(seed=1), GUIDED, "bad", max_images=3, max_new=60)
    job = InterleavedJob(("a", "b"), (photo,), samples=2, options=options)
    shown = open_ended_job.read(job, LIMITS, tiny_bundle.vision.config)
    said = []
    open_ended_job.run(
        job, tiny_bundle, LIMITS, str(tmp_path / "out"), shown, {"model": "m"}, said.append
    )
    folders = sorted((tmp_path / "out").iterdir())
    assert len(folders) == 4 and any(str(folders[2]) in line for line in said)
    stored = [json.loads((folder / "document.json").read_text()) for folder in folders]
    assert [(one["prompt"], one["first"]) for one in stored] == [
        ("a", 0),
        ("a", 1),
        ("b", 2),
        ("b", 3),
    ]
    assert stored[0]["model"] == "m" and stored[0]["sizes"] == ["2x3"]
    before = [encoded(tiny_bundle, shown[0]), Text("b")]
    alone = interleave(tiny_bundle, before, [(2, 3)], dataclasses.replace(options, first=3))
    images = [segment.codes.tolist() for segment in alone if isinstance(segment, Image)]
    texts = [segment.text for segment in alone if isinstance(segment, Text)]
    assert images == [entry["codes"] for entry in stored[3]["segments"] if "codes" in entry]
    assert texts == [entry["text"] for entry in stored[3]["segments"] if "text" in entry]


def test_a_model_without_documents_is_warned_about(tiny_bundle, tmp_path):
    said = []
    bundle = dataclasses.replace(tiny_bundle, learnt=("chat",))
    job = InterleavedJob(sizes=((1, 1),), options=InterleavedOptions(max_new=2))
    open_ended_job.run(job, bundle, LIMITS, str(tmp_path), [], {}, said.append)
    assert said[0].startswith(
        "Warning: the model was never trained on documents of texts and images"
    )


@pytest.mark.parametrize(
    "words, fields",
    [
        ("needs the sizes that images may have", {}),
        ("size must be HxW, in tokens, not '4'", {"sizes": ((4,),)}),
        ("size must be HxW, in tokens, not '0x4'", {"sizes": ((0, 4),)}),
        ("samples must be at least 1", {"sizes": ((1, 1),), "samples": 0}),
        (
            "all samples are equal",
            {
                "sizes": ((1, 1),),
                "samples": 2,
                "options": InterleavedOptions(*[Sampling(temperature=0)] * 2),
            },
        ),
    ],
)
def test_jobs_that_cannot_be_are_refused(words, fields):
    with pytest.raises(JobError, match=words):
        InterleavedJob(**fields)


def test_a_conversation_from_a_pipe(tiny_directories, photo):
    lines = (
        f"/image {photo}\nWhat is this?\n/image {photo}x\nAnd now?\n"
        + "y" * 300
        + "\n/new\n/quit\n"
    )
    done = command(tiny_directories, "--task=chat", "--max_new=4", lines=lines)
    assert done.returncode == 0, done.stderr
    assert "photo.png is attached to the next message, as 2x3 codes." in done.stdout
    assert "photo.pngx: cannot be read" in done.stdout
    assert "The context of the model is full" in done.stdout
    assert done.stdout.endswith("A new conversation begins.\n")


@pytest.mark.parametrize(
    "words, options",
    [
        ("--output is not for chat; leave it out", ["--task=chat", "--output=x"]),
        (
            "--max_images is not for text_to_image",
            ["--task=text_to_image", "--output=x", "--max_images=2"],
        ),
        (
            "No image fits the context of 200",
            ["--task=interleaved", "--output=x", "--size=20x20", "--image=photo.png"],
        ),
    ],
)
def test_options_of_the_command_are_checked(tiny_directories, tmp_path, photo, words, options):
    options = [option.replace("=x", f"={tmp_path}/x") for option in options]
    options = [option.replace("photo.png", photo) for option in options]
    done = command(tiny_directories, *options)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()
