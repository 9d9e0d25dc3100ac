"""Which feature of a TFDS dataset is its text: by name and type, never by order."""

import io

import numpy as np
import pytest
from PIL import Image

from emu3_jax.data.sources import SourceError, open_source
from emu3_jax.data.sources.tfds import text_feature

tfds = pytest.importorskip("tensorflow_datasets")

TEXT, NUMBER = np.str_, np.int64
LABEL = tfds.features.ClassLabel(names=["cat", "dog"])


def chosen(features, text=""):
    path, _ = text_feature(tfds.features.FeaturesDict(features), "tfds:d", text)
    return "/".join(path)


@pytest.mark.parametrize(
    "features, path",
    [
        ({"captions": tfds.features.Sequence({"id": NUMBER, "text": TEXT})}, "captions/text"),
        ({"captions": tfds.features.Sequence({"a": TEXT, "text": TEXT})}, "captions/text"),
        ({"captions": tfds.features.Sequence({"id": NUMBER, "raw": TEXT})}, "captions/raw"),
        ({"captions": tfds.features.Sequence(tfds.features.Text()), "a": TEXT}, "captions"),
        ({"caption": NUMBER, "title": TEXT, "file": TEXT}, "title"),
        ({"label": LABEL, "text": TEXT}, "text"),
        ({"label": LABEL, "file": TEXT}, "label"),
        ({"label": NUMBER}, ""),
    ],
)
def test_the_feature_that_is_chosen(features, path):
    assert chosen(features) == path


@pytest.mark.parametrize(
    "features, options",
    [
        ({"captions": tfds.features.Translation(["en", "de"])}, "captions/[de]+n?, captions/"),
        ({"image/filename": TEXT, "a": NUMBER}, "image/filename"),
        ({"a": TEXT, "b": LABEL}, "a, b"),
    ],
)
def test_what_is_open_is_refused_with_the_options(features, options):
    with pytest.raises(SourceError, match=f"is open; choose one by .*#FEATURE from: {options}"):
        chosen(features)


def test_a_feature_that_is_named():
    features = {"captions": tfds.features.Translation(["en", "de"]), "text": TEXT}
    assert chosen(features, "captions/de") == "captions/de"
    with pytest.raises(SourceError, match="no text feature is called 'fr'; choose .*captions/de"):
        chosen(features, "fr")


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value,) * 3).save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())


def test_captions_that_are_a_sequence_of_features(tmp_path, monkeypatch):
    texts = [["a bicycle", "a bike"], ["two cats", "cats"], ["", "soup"], []]

    class SequenceCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image/filename": tfds.features.Text(),
                "image/id": NUMBER,
                "captions": tfds.features.Sequence({"text": TEXT, "id": NUMBER}),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, some in enumerate(texts):
                captions = [{"text": text, "id": 770 + k} for k, text in enumerate(some)]
                yield (
                    i,
                    {
                        "image": png(i),
                        "image/filename": f"{i}.png",
                        "image/id": i,
                        "captions": captions,
                    },
                )

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    SequenceCaptions(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    items = list(open_source("tfds:sequence_captions:train[:100%]").items(0))
    wanted = {0: "a bicycle", 1: "two cats", 2: "soup", 3: ""}
    assert {item.attributes["image/id"]: item.text for item in items} == wanted
    assert {item.problem for item in items} == {""}
    named = open_source("tfds:sequence_captions:train#image/filename").items(0)
    assert {item.text for item in named} == {f"{i}.png" for i in range(4)}
