"""The shipped model in the real VLMEvalKit, and what its own class for Emu3 feeds beside it.

VLMEvalKit is not on PyPI: the environment variable VLMEVALKIT names a checkout of its commit
e8e78f0. The first run installs what it imports: VLMEVALKIT=… bash launch/test.sh --slow FILE.
"""

import base64
import csv
import json
import os
import pathlib

import harness_environments
import made_up_questions
import numpy as np
import pytest
from paths import ROOT

from emu3_jax.data import media
from emu3_jax.evaluate.harnesses.answering import Answerer
from emu3_jax.generate import codec, modalities, presets
from emu3_jax.sequence import Image, Text

pytestmark = pytest.mark.slow

# The template of the released processor, mode "U" (processing_emu3.py).
BEFORE, AFTER = "You are a helpful assistant. USER: ", ". ASSISTANT:"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the harness's environment wrote about each made-up question."""
    if not (kit := os.environ.get("VLMEVALKIT")):
        pytest.skip("VLMEVALKIT names no checkout of VLMEvalKit at e8e78f0")
    folder = tmp_path_factory.mktemp("vlmevalkit")
    with (folder / "MadeUp.tsv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(("index", "image", "question", "answer"))
        for number, row in enumerate(made_up_questions.write(folder)):
            image = base64.b64encode(pathlib.Path(row["image"]).read_bytes()).decode()
            rows.writerow((number, image, row["question"], "unknown"))
    python = harness_environments.python("vlmevalkit")
    driver = ROOT / "tests" / "support" / "vlmevalkit_driver.py"
    harness_environments.run(python, folder, [kit], str(driver), str(folder))
    return json.loads((folder / "said.json").read_text())


@pytest.fixture(scope="module")
def answerer(first_device):
    return Answerer.load("nano", "nano", mesh=first_device)


def asked(one):
    """The parts of a message of one image and one text."""
    image, text = one["message"]
    assert (image["type"], text["type"]) == ("image", "text")
    return pathlib.Path(image["value"]), text["value"]


def test_answers_are_those_of_our_own_path(said, answerer):
    options = modalities.Options(presets.UNDERSTANDING, max_new=12)
    assert [one["answer"] for one in said] == answerer.answers(map(asked, said), options)
    assert len({one["answer"] for one in said}) > 1


def test_with_verbatim_the_prompt_is_that_of_its_own_class(said, answerer):
    """Image and text as its own class hands them to the released processor, in that template."""
    verbatim = Answerer(answerer.bundle, answerer.mesh, answerer.limits, verbatim=True)
    for one in said:
        file, text = asked(one)
        pixels = codec.padded(media.read_image(file))
        assert [*pixels.shape[1::-1]] == one["size"]
        (codes,) = codec.encode(answerer.bundle, [pixels], answerer.limits)
        template = (Text(BEFORE), Image(codes), Text(one["text"] + AFTER))
        expected = answerer.bundle.grammar.prompt(template)
        (found,) = verbatim.prompts([(file, text)])
        np.testing.assert_array_equal(found, expected)


def test_its_own_class_feeds_two_periods_where_we_feed_one(said, answerer):
    grammar, eos = answerer.bundle.grammar, answerer.bundle.vocab.eos
    for one in said:
        (ids,) = answerer.prompts([asked(one)])
        theirs = one["text"] + AFTER
        assert ".." in theirs
        assert grammar.parse(np.append(ids, eos)).segments[-1].text == theirs.replace("..", ".")
