"""Metrics for people: PSNR first, units, sensible rounding, nothing left out."""

import dataclasses
import math
import re

import pytest

from emu3_jax.evaluate import evaluator
from emu3_jax.evaluate.during_training import EvaluationCallback
from emu3_jax.evaluate.evaluator import Result, Subject
from emu3_jax.evaluate.language.likelihood import Likelihood
from emu3_jax.evaluate.vision.reconstruction import Reconstruction
from emu3_jax.train.run import readable
from emu3_jax.train.tasks.vision.vision_tokenizer import VisionTokenizerTask

RECONSTRUCTED = {
    "codebook_used_images": 88.2345, "ssim_images": 0.81234, "count_images": 12345,
    "perceptual_images": 0.11111, "psnr_images": 24.1749, "psnr_clips": 23.2,
    "boundary_db": 0.4321, "codebook_perplexity_images": 1594.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("psnr/stills", 24.1749, "24.17 dB"),
        ("boundary_db_worst", 0.4321, "0.43 dB"),
        ("ssim_clips", 0.812345, "0.8123"),
        ("loss/stills_perceptual", 0.112349, "0.1123"),
        ("codebook_used_corpus", 88.2345, "88.2 %"),
        ("codebook/dead", 0.0312, "3.1 %"),
        ("recall_at_1_ceiling", 50.0, "50.0 %"),
        ("codebook/perplexity", 1594.2, "1594"),
        ("loss", 0.00001234, "1.234e-05"),
        ("count_images", 12345, "12,345"),
        ("targets", 2_931_056.0, "2,931,056"),
        ("feedback", 3.14159, "3.142"),  # "db" within a word is no unit
        ("loss", math.nan, "nan"),
    ],
)
def test_a_number_is_rounded_by_what_it_is(name, value, text):
    assert readable.number(name, value) == text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known(Reconstruction):
    """A reconstruction whose figures are known."""

    name: str = "known"

    def run(self, subject):
        return Result(RECONSTRUCTED)


def test_the_reconstruction_begins_with_psnr_and_leaves_nothing_out():
    results = evaluator.run_all(Subject(vision_tokenizer=object()), [Known()])
    text = evaluator.format_results(results)
    names = [line.split()[0] for line in text.splitlines()[1:]]
    assert names[:6] == [
        "psnr_images", "psnr_clips", "ssim_images", "perceptual_images",
        "codebook_used_images", "codebook_perplexity_images",
    ]  # fmt: skip
    assert sorted(names) == sorted([*RECONSTRUCTED, "seconds"])
    assert re.search(r"psnr_images +24\.17 dB\n", text)
    assert results["known"].metrics["psnr_images"] == 24.1749


def test_an_evaluation_during_training_begins_with_psnr_and_leaves_nothing_out(tmp_path):
    callback = EvaluationCallback(Known(), None, tmp_path)
    values = {f"validation/known/{name}": value for name, value in RECONSTRUCTED.items()}
    text = callback.in_words(values)
    assert text.startswith(
        "known: psnr_images 24.17 dB, psnr_clips 23.20 dB | ssim_images 0.8123 |"
    )
    assert text.endswith("| count_images 12,345, boundary_db 0.43 dB")
    assert text.count(",") - 1 + text.count("|") + 1 == len(RECONSTRUCTED)  # 12,345 has one


def test_a_likelihood_begins_with_all_tokens():
    values = {"nats_text": 1.0, "perplexity_text": 2.7, "nats_all": 0.5, "perplexity_all": 1.6}
    assert readable.line(values, Likelihood.headline) == (
        "nats_all 0.5, perplexity_all 1.6 | nats_text 1, perplexity_text 2.7"
    )


def test_a_log_line_of_tokenizer_training():
    values = {
        "adversarial/stills_fake": 0.5, "codebook/dead": 0.25, "codebook/dead_stills": 0.5,
        "codebook/perplexity": 512.34, "loss": 0.123456, "loss/clips_perceptual": 0.2,
        "loss/stills_l2": 0.01, "loss/stills_perceptual": 0.11, "psnr/clips": 20.0,
        "psnr/stills": 21.987,
    }  # fmt: skip
    assert readable.line(values, VisionTokenizerTask.headline, rest=False) == (
        "psnr/clips 20.00 dB, psnr/stills 21.99 dB | "
        "clips_perceptual 0.2000, stills_perceptual 0.1100 | codebook/dead 25.0 % | "
        "codebook/perplexity 512.3 | loss 0.1235, stills_l2 0.01"
    )
