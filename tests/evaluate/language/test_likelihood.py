"""Likelihood: exact weighting, independence of batching and packing, and what is counted where."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import tiny_models
from flax import linen as nn

from emu3_jax import sharding
from emu3_jax.data.tokens import records
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.evaluate.language import likelihood, token_documents
from emu3_jax.generate import best_of, scoring
from emu3_jax.progress import Progress
from emu3_jax.sequence import Image, Text, TokenClass, Video
from emu3_jax.sharding import MeshConfig


@pytest.fixture(scope="module")
def bundle():
    return tiny_models.initial_bundle(codebook_size=16)


def stored(grammar, key, kind, *segments):
    segments = tuple(
        dataclasses.replace(s, ids=grammar.text_ids(s.text)) if isinstance(s, Text) else s
        for s in segments
    )
    return records.Record(key, "test", kind, segments)


@pytest.fixture(scope="module")
def tokens(bundle, tmp_path_factory):
    """A dataset of two stills, one clip, two texts, in a folder named after its split."""
    folder = tmp_path_factory.mktemp("tokens") / "validation"
    codes = np.arange(8).reshape(1, 2, 4) % 16
    grammar = bundle.grammar
    by_kind = {
        "text": [
            stored(grammar, "t0", "text", Text("some words")),
            stored(grammar, "t1", "text", Text("more")),
        ],
        "image": [
            stored(grammar, "i0", "image", Text("a cat"), Image(codes[0])),
            stored(grammar, "i1", "image", Text("dog"), Image(codes[0].T)),
        ],
        "video": [stored(grammar, "v0", "video", Text("run"), Video(codes, 8.0, 0.5))],
    }
    shards, counts = [], {}
    for kind, chosen in by_kind.items():
        file = f"{kind}.array_record"
        with records.ShardWriter(folder / file) as writer:
            for record in chosen:
                writer.write(record)
        shards.append(records.Shard(file, kind, len(chosen)))
        counts[kind] = records.Counts(len(chosen))
    info = records.DatasetInfo(
        bundle.vocab, grammar.tokenizer.fingerprint, "", grammar.video_format,
        tuple(shards), counts,
    )  # fmt: skip
    records.write_dataset_info(folder, info)
    return folder.parent


@pytest.fixture(scope="module")
def documents(bundle, tokens):
    return token_documents.documents_by_task(tokens / "validation", bundle.grammar)


@pytest.fixture(scope="module")
def by_hand(bundle, documents):
    """(task, class) → list of -log p, each document alone and through the full logits."""
    found = {}
    forward = jax.jit(bundle.model.apply)
    for task, group in documents.items():
        for built in group:
            # Zeros behind the document cannot be seen from within it, and give one shape.
            ids = np.zeros((1, 80), np.int32)
            ids[0, : len(built) - 1] = built.ids[:-1]
            logits = np.asarray(forward(bundle.variables, ids)[0], np.float64)
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            for place, target in enumerate(built.ids[1:]):
                key = (task, TokenClass(built.classes[place + 1]).name.lower())
                found.setdefault(key, []).append(-log_p[place, target])
    return found


@pytest.mark.parametrize(("batch_size", "rows"), [(1, 0), (3, 0), (2, 128), (5, 80)])
def test_any_batch_and_packing_gives_the_mean_over_targets(
    bundle, tokens, by_hand, batch_size, rows
):
    said = []
    subject = Subject(
        language_model=bundle,
        progress=Progress(said.append, every_s=0.0),
    )
    evaluator = likelihood.Likelihood(tokens=str(tokens), batch_size=batch_size, rows=rows)
    result = evaluator.run(subject)
    done, total = re.match(r"targets scored: (\d+) of (\d+), about 0 s left", said[-1]).groups()
    assert done == total
    for (task, kind), nll in by_hand.items():
        found = result.metrics[f"nats_{task}_on_{kind}"]
        assert found == pytest.approx(np.mean(nll), abs=2e-5), (task, kind)
    for kind in ("text", "image", "video", "structure"):
        nll = np.concatenate([v for (_, k), v in by_hand.items() if k == kind])
        assert result.metrics[f"nats_{kind}"] == pytest.approx(nll.mean(), abs=2e-5)
        expected = np.exp(nll.mean())
        assert result.metrics[f"perplexity_{kind}"] == pytest.approx(expected, rel=2e-5)
    assert result.metrics["targets"] == sum(len(v) for v in by_hand.values())
    rows_of_table = {row[:2]: row[3] for row in result.tables["by_task_and_class"].rows}
    assert rows_of_table == {key: len(v) for key, v in by_hand.items()}


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=8), MeshConfig(fsdp=4, context=2)])
def test_weights_spread_over_a_mesh_are_used_where_they_lie(bundle, tokens, mesh):
    """In batches of three rows, which no mesh can share out."""
    subject = Subject(language_model=bundle)
    evaluator = likelihood.Likelihood(tokens=str(tokens), batch_size=3)
    expected = evaluator.run(subject).metrics
    over = sharding.make_mesh(mesh)
    layout = sharding.state_shardings(bundle.variables, over)
    with jax.set_mesh(over):
        variables = jax.device_put(nn.meta.unbox(bundle.variables), layout)
        subject = Subject(language_model=dataclasses.replace(bundle, variables=variables))
        found = evaluator.run(subject).metrics
    assert found == pytest.approx(expected, rel=2e-5)


def test_several_splits_are_one_pool_of_documents(bundle, tokens, tmp_path):
    for split in ("a", "b"):
        (tmp_path / split).symlink_to(tokens / "validation")
    one, two = (
        likelihood.Likelihood(tokens=str(tmp_path), splits=splits, batch_size=3)
        .run(Subject(language_model=bundle))
        .metrics
        for splits in (("a",), ("a", "b"))
    )
    assert two["targets"] == 2 * one["targets"]
    assert two["nats_all"] == pytest.approx(one["nats_all"], rel=1e-6)
    whole = likelihood.Likelihood(tokens=str(tokens / "validation"), splits=("a", "b"))
    found = whole.run(Subject(language_model=bundle)).metrics
    assert found["targets"] == one["targets"]  # not twice


def test_captioned_records_are_read_both_ways(documents):
    assert {task: len(group) for task, group in documents.items()} == {
        "text": 2,
        "text_to_image": 2,
        "image_to_text": 2,
        "text_to_video": 1,
        "video_to_text": 1,
    }


def test_packing_keeps_every_document_whole(documents):
    batches = list(scoring.packed_batches(scoring.fit(documents, row_length=80), 2))
    whole = []
    for batch in batches:
        assert batch["inputs"].shape == (2, 80)
        for row in range(2):
            for number in range(1, batch["segment_ids"][row].max() + 1):
                place = batch["segment_ids"][row] == number
                assert batch["positions"][row][place].tolist() == list(range(place.sum()))
                ids = [*batch["inputs"][row][place], batch["targets"][row][place][-1]]
                whole.append([int(i) for i in ids])
    expected = [built.ids.tolist() for group in documents.values() for built in group]
    assert sorted(whole) == sorted(expected)
    used = sum((batch["segment_ids"] > 0).any(1).sum() for batch in batches)
    assert used < len(expected)


def test_targets_without_a_loss_are_left_out(bundle):
    record = stored(bundle.grammar, "c", "chat", Text("question", loss=False), Text("answer"))
    built = bundle.grammar.build(token_documents.tasks_of(record)["chat"])
    batch = next(scoring.packed_batches(scoring.fit({"chat": [built]}), 1))
    assert (batch["classes"] != TokenClass.PAD).sum() == len("answer") + 1


def test_wrong_folders_and_rows_are_refused(bundle, documents, tmp_path):
    with pytest.raises(ValueError, match="is a token dataset"):
        likelihood.Likelihood(tokens=str(tmp_path)).run(Subject(language_model=bundle))
    shown = {task: group for task, group in documents.items() if task != "text"}
    with pytest.raises(ValueError, match="none of the 6 documents fits into 8 tokens"):
        scoring.fit(shown, row_length=8)


def test_documents_longer_than_the_context_are_scored_as_trained(bundle, tokens, documents):
    """Text in windows from position 0, images never cut; by plain softmax, piece by piece."""
    context = 7
    short = dataclasses.replace(bundle, max_context=context)
    expected = []
    for built in documents["text"]:
        for start in range(0, len(built) - 1, context):
            part = built.ids[start : start + context + 1]
            logits = np.asarray(bundle.model.apply(bundle.variables, part[None, :-1])[0])
            log_p = jax.nn.log_softmax(logits.astype(np.float32))
            expected += [-float(log_p[i, target]) for i, target in enumerate(part[1:])]
    result = likelihood.Likelihood(tokens=str(tokens)).run(Subject(language_model=short))
    assert result.metrics["targets"] == len(expected) == sum(len(d) - 1 for d in documents["text"])
    assert result.metrics["nats_all"] == pytest.approx(np.mean(expected), abs=2e-5)
    counted = {k: v for k, v in result.metrics.items() if k.startswith("documents_")}
    assert counted == {"documents_cut": 1, "documents_dropped": 6}
    assert result.notes == ["documents longer than the context: 1 cut as in training, 6 left out"]
    whole = likelihood.Likelihood(tokens=str(tokens)).run(Subject(language_model=bundle))
    assert whole.notes == [] and whole.metrics["documents_dropped"] == 0


def test_comparing_candidates_says_how_far_it_is(bundle):
    said = []
    best_of.best(bundle, [Image(np.zeros((2, 2), int))] * 4, ["a"] * 4, 2, progress=said.append)
    assert said[0].startswith("tokens compared: ") and "2 candidates each" in said[1]


def test_candidates_longer_than_the_context_are_refused(bundle):
    short = dataclasses.replace(bundle, max_context=24)
    with pytest.raises(ValueError, match="1 of 2 candidates .* longer than the context of 24"):
        best_of.caption_nats(short, [Image(np.zeros((2, 2), int))] * 2, ["a", "a" * 20])
