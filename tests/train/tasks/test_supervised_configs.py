"""Each config of supervised tuning trains: tiny, on tiny data, from any kind of start."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_models
from paths import ROOT
from tiny_tasks import pretrain_task
from token_records import GRAMMAR, text, write_dataset

from emu3_jax.config import load_config
from emu3_jax.data.tokens.mixture import MixtureEntry
from emu3_jax.data.tokens.pipeline import DataConfig, make_iterator
from emu3_jax.data.tokens.records import Record
from emu3_jax.interop import exporting
from emu3_jax.interop.bundle import Language, assemble, save_language
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.sequence import Image, TokenClass, Turn, Video, chat_document
from emu3_jax.train.loop import train
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.tasks.language.pretrain import PretrainTask

CONFIGS = sorted(p.stem for p in (ROOT / "configs/post_training").glob("sft_*.py"))
SIZES = dict(
    hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)  # fmt: skip
LENGTH = 128
TEXT, IMAGE, VIDEO, MARKS = (
    TokenClass.TEXT, TokenClass.IMAGE, TokenClass.VIDEO, TokenClass.STRUCTURE,
)  # fmt: skip
# What each of them learns.
LEARNT = {
    "sft_drawing": {IMAGE},
    "sft_drawing_eos": {TEXT, IMAGE, MARKS},
    "sft_understanding_stage1": {TEXT},
    "sft_understanding_stage2": {TEXT},
    "sft_chat": {TEXT, IMAGE, MARKS},
    "sft_editing": {TEXT, IMAGE, MARKS},
    "sft_video": {TEXT, VIDEO, MARKS},
    "sft_qft": {TEXT, IMAGE, MARKS},  # of the 8B the codes alone
    "sft_easy_vqa": {TEXT, IMAGE},
}


def _image(i):
    return Image(np.random.default_rng(i).integers(0, 100, (2, 3)))


def _clip(i, frames=2):
    return Video(np.random.default_rng(i).integers(0, 100, (frames, 2, 2)), 4.0, 2.0)


def _stored(segments):
    return tuple(text(s.text, s.loss) if hasattr(s, "text") else s for s in segments)


def _records(i, target):
    turns = [Turn(f"what {i}", "a fox", (_image(i), _image(i + 1))), Turn("and", "more")]
    chat = chat_document(turns).segments
    yield Record(f"i{i}", "s", "image", (text(f"fox {i}"), _image(i)))
    yield Record(f"v{i}", "s", "video", (text(f"clip {i}"), _clip(i)))
    yield Record(f"t{i}", "s", "text", (text(f"words {i}"),))
    yield Record(f"c{i}", "s", "chat", _stored(chat))
    # An answer that is drawn.
    drawn = [*_stored(chat_document([Turn(f"draw {i}", "")]).segments[:1]), _image(i)]
    yield Record(f"d{i}", "s", "chat", tuple(drawn))
    source = _clip(i, 1) if isinstance(target(i), Video) and i % 2 else _image(i)
    yield Record(f"e{i}", "s", "document", (source, text("redder"), target(i)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Datasets whose documents end with an image ("sft_editing") or a clip ("sft_video").

    Chats of the nano model have a folder of their own beside its captions.
    """
    found = {}
    for name, target in (("images", _image), ("clips", _clip)):
        found[name] = tmp_path_factory.mktemp(name)
        records = [record for i in range(6) for record in _records(i, target)]
        for folder in ("train", "questions/train", "tokens/train"):
            write_dataset(found[name] / folder, records)
    pairs = [(text(f"fox {i}"), _image(i), _image(i + 1)) for i in range(6)]
    pairs = [Record(f"p{i}", "s", "preference", pair) for i, pair in enumerate(pairs)]
    write_dataset(found["images"] / "preferences", pairs)
    return found


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """The same weights as a run directory and in both layouts of released models."""
    model = TransformerConfig(GRAMMAR.vocab.size, dropout=0.1, **SIZES)
    data = DataConfig((MixtureEntry("unused", "text"),), batch_size=2, sequence_length=LENGTH)
    task = pretrain_task(model, data)
    variables = nn.unbox(task.init(jax.random.key(7)))
    language = Language(GRAMMAR.vocab, GRAMMAR, "v1", LENGTH)
    run = tmp_path_factory.mktemp("run")
    save_language(run, language)
    tiny_models.save_language_run(run, model, variables, variables["params"])
    places = [run]
    bundle = assemble(task.model, variables, language, where="here")
    for layout in ("baai", "hf"):
        places.append(tmp_path_factory.mktemp(layout))
        options = exporting.ExportOptions(layout, "float32")
        exporting.write_language_model(places[-1], bundle, options)
    return places, variables["params"]


def _tiny(name, folders, start):
    folder = folders["clips" if name == "sft_video" else "images"]
    argument = folder if name == "sft_easy_vqa" else f"nano:{folder}"  # there is no large one
    config = load_config(f"{ROOT}/configs/post_training/{name}.py:{argument}")
    with config.unlocked():
        config.model.update(SIZES)
        config.text_tokenizer = "bytes"
        config.start.transformer = str(start)
        rows = 8 * config.run.get("accumulation", 1)  # one a device and micro-batch
        config.data.update(batch_size=rows, sequence_length=LENGTH, pack_window=2)
        config.loss.chunk_tokens = LENGTH
        config.run.steps = 2
        config.run.log.every = 1
        config.evaluation = ()
    return PretrainTask(PretrainTask.resolve(config.to_dict()))


def test_every_config_is_tried():
    assert set(CONFIGS) == set(LEARNT)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_on_what_it_says(name, folders, starts, tmp_path):
    places, weights = starts
    task = _tiny(name, folders, places[CONFIGS.index(name) % len(places)])
    batches = make_iterator(task.config.data, task.language.grammar)
    learnt = set()
    for _ in range(4):
        batch = next(batches)
        learnt |= {TokenClass(c) for c in np.unique(batch["classes"][batch["weights"] > 0])}
    batches.close()
    assert learnt == LEARNT[name]
    state = train(task, task.config.run, tmp_path / "run")
    assert int(state.step) == 2
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    # It began with the weights that it was given, and moved them.
    assert np.isfinite(losses).all() and 1 < losses[0] < 10
    tables = (state.params["embed"]["embedding"], weights["embed"]["embedding"])
    now, before = (np.asarray(table)[: GRAMMAR.vocab.size] for table in tables)
    assert 0 < np.abs(now - before).max() < 1e-3
