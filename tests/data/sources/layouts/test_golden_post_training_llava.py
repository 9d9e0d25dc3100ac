"""LLaVA's rows against the released rules; the folder is that of GOLDEN_POST_TRAINING."""

import json
import os
import pathlib

import pytest
from paths import GOLDEN

from emu3_jax.data.sources import SourceError, open_source
from emu3_jax.data.sources.layouts import llava

FOLDER = pathlib.Path(os.environ.get("GOLDEN_POST_TRAINING", GOLDEN / "post_training"))
SAMPLES = json.loads((FOLDER / "chat.json").read_text())["llava"]["samples"]
RULES = {
    "llava": (llava.llava_1_5, "llava_1_5"),
    "llava_next": (llava.llava_next, "llava_next"),
}


def golden_turns(case):
    return [
        (turn["role"], [part.get("text", part.get("image")) for part in turn["parts"]])
        for turn in case["turns"]
    ]


def files_of(sample):
    files = sample.get("image", [])
    return files if isinstance(files, list) else [files]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("case", SAMPLES, ids=lambda case: case["name"])
def test_turns_are_those_of_the_released_rule(case, name):
    rule, key = RULES[name]
    talk, has_media = case["sample"]["conversations"], "image" in case["sample"]
    if "error" in case[key]:
        with pytest.raises(SourceError, match="do not alternate|unknown role"):
            rule(talk, has_media)
        return
    found = [(message.role, list(message.parts)) for message in rule(talk, has_media)]
    assert found == golden_turns(case[key])


def flat(turns):
    """Roles with their texts and paths."""
    found = []
    for turn in turns:
        for role, name in (("user", "question"), ("assistant", "answer")):
            said = [{"text": turn[name]}] if isinstance(turn[name], str) else turn[name]
            found.append((role, [value for part in said for value in part.values()]))
    return found


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_files_are_read_by_the_rule_and_ill_formed_rows_say_why(ending, name, tmp_path):
    rows = [case["sample"] for case in SAMPLES]
    lines = "\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(rows)
    (tmp_path / f"chats.{ending}").write_text(lines)
    source = open_source(f"{name}:chats.{ending}", tmp_path, items_per_shard=3)
    items = [item for shard in range(source.num_shards) for item in source.items(shard)]
    assert [item.key for item in items] == [row["id"] for row in rows]
    _, key = RULES[name]
    for item, case in zip(items, SAMPLES, strict=True):
        wanted = case[key]
        if "error" in wanted:
            assert "do not alternate" in item.problem or "unknown role" in item.problem
        elif wanted["placeholders"] != wanted["images"]:
            counts = wanted["placeholders"], wanted["images"]
            assert item.problem == "the row has {} placeholders for {} media (image)".format(
                *counts
            )
        elif [turn["role"] for turn in wanted["turns"]][:2] == ["user", "user"]:
            assert "do not alternate" in item.problem  # which that rule allows, and a chat does not
        else:
            paths = [str(tmp_path / file) for file in files_of(case["sample"])]
            turns = [
                (role, [paths[part] if isinstance(part, int) else part for part in parts])
                for role, parts in golden_turns(wanted)
            ]
            assert (item.problem, item.kind, flat(item.turns)) == ("", "chat", turns)
