"""Configs: wrong keys and types name what was expected; files and run directories round-trip."""

import dataclasses

import ml_collections
import pytest

from emu3_jax.config import (
    ConfigError,
    apply_overrides,
    config_differences,
    load_config,
    read_config,
    save_config,
    to_dataclass,
    to_values,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    name: str = "a"


@dataclasses.dataclass(frozen=True)
class Model:
    num_layers: int
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()
    limit: float | None = None
    flag: bool = False

    def __post_init__(self):
        if self.num_layers < 1:
            raise ValueError("num_layers must be positive")


def test_builds_nested_dataclasses_from_configdicts_and_dicts():
    values = dict(
        num_layers=3, sizes=[4, 5], inner=dict(rate=1), items=(dict(name="b"), dict()), limit=2
    )
    expected = Model(3, (4, 5), Inner(1.0), (Inner(name="b"), Inner()), 2.0)
    for given in (values, ml_collections.ConfigDict(values)):
        built = to_dataclass(Model, given, "model")
        assert built == expected
        assert isinstance(built.inner.rate, float) and isinstance(built.limit, float)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(num_layer=3), "model.num_layer does not exist; did you mean model.num_layers?"),
        (dict(num_layers=3, xyz=1), "model.xyz does not exist; valid keys: num_layers, sizes"),
        (
            dict(num_layers=3, inner=dict(rat=1.0)),
            "model.inner.rat does not exist; did you mean model.inner.rate?",
        ),
        (dict(), "model.num_layers is missing; it has no default"),
        (dict(num_layers="3"), "model.num_layers must be of type int, got '3'"),
        (dict(num_layers=3.0), "model.num_layers must be of type int, got 3.0"),
        (dict(num_layers=True), "model.num_layers must be of type int, got True"),
        (dict(num_layers=1, flag=1), "model.flag must be of type bool, got 1"),
        (dict(num_layers=1, limit="x"), "model.limit must be of type float, got 'x'"),
        (dict(num_layers=1, inner=3), "model.inner must be a section with keys, got 3"),
        (dict(num_layers=1, inner=dict(name=None)), "model.inner.name must be of type str"),
        (dict(num_layers=1, sizes=3), "model.sizes must be a list, got 3"),
        (dict(num_layers=1, sizes=(1, "b")), r"model.sizes\[1\] must be of type int, got 'b'"),
        (dict(num_layers=1, items=(dict(nme="b"),)), r"model.items\[0\].nme .* mean .*name\?"),
        (dict(num_layers=0), "model: num_layers must be positive"),
    ],
)
def test_mistakes_name_the_key_and_what_was_expected(values, message):
    with pytest.raises(ConfigError, match=message):
        to_dataclass(Model, values, "model")


def test_none_only_where_it_is_allowed():
    assert to_dataclass(Model, dict(num_layers=1, limit=None), "model").limit is None
    with pytest.raises(ConfigError, match="flag must be of type bool, got None"):
        to_dataclass(Model, dict(num_layers=1, flag=None), "model")


FILE = """
from ml_collections import ConfigDict
def get_config(arg=""):
    config = ConfigDict(dict(model=dict(num_layers=2, rate=0.5, name="x", sizes=(1, 2), on=True)))
    config.text = arg
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(FILE)
    return path


def test_files_take_an_argument_and_give_a_locked_config(config_file):
    config = load_config(f"{config_file}:small")
    assert config.text == "small" and config.is_locked
    assert load_config(str(config_file)).text == ""


def test_overrides(config_file):
    config = load_config(str(config_file))
    apply_overrides(
        config,
        {
            "model.num_layers": "5",
            "model.rate": "1",
            "model.name": "3",
            "model.sizes": "[7]",
            "model.on": "false",
            "model.new": "1e-3",
            "section.new": "2",
            "text": "a b",
        },
    )
    assert config.to_dict() == {
        "model": dict(num_layers=5, rate=1.0, name="3", sizes=(7,), on=False, new=1e-3),
        "section": dict(new=2),
        "text": "a b",
    }
    assert config.is_locked and isinstance(config.model.rate, float)


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("model.name.deep", "5", "config.model.name is 'x' and has no key deep"),
        ("model", "5", "config.model is a section; set one of its keys"),
        ("model.num_layers", "many", "config.model.num_layers must be of type int, got 'many'"),
        ("model.num_layers", "2.5", "config.model.num_layers must be of type int, got '2.5'"),
        ("model.num_layers", "true", "config.model.num_layers must be of type int, got 'true'"),
    ],
)
def test_bad_overrides(config_file, key, text, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(load_config(str(config_file)), {key: text})


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.py", None, "config file .*missing.py does not exist"),
        ("a.txt", "", "must be a python file"),
        ("b.py", "x = 1", r"b.py has no get_config\(arg\) function"),
        ("c.py", "def get_config(arg=''):\n    return {}", "must return a ConfigDict, got {}"),
    ],
)
def test_files_that_are_no_configs(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / name))


def test_every_field_is_written_and_comes_back(tmp_path):
    config = Model(2, items=(Inner(), Inner(0.2)), limit=None)
    values = to_values(config)
    assert values == {
        "num_layers": 2,
        "sizes": [1, 2],
        "inner": {"rate": 0.1, "name": "a"},
        "items": [{"rate": 0.1, "name": "a"}, {"rate": 0.2, "name": "a"}],
        "limit": None,
        "flag": False,
    }
    save_config(values, tmp_path / "run")
    assert to_dataclass(Model, read_config(tmp_path / "run")) == config
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_whole_config_names_its_sections_without_itself():
    with pytest.raises(ConfigError, match=r"^inner.rat does not exist; did you mean inner.rate\?"):
        to_dataclass(Model, dict(num_layers=1, inner=dict(rat=1.0)))
    with pytest.raises(ConfigError, match="^config.num_layer does not exist; did you mean config"):
        to_dataclass(Model, dict(num_layer=1))


def test_a_save_that_fails_leaves_the_old_config(tmp_path, monkeypatch):
    save_config(dict(text="old"), tmp_path)
    before = (tmp_path / "config.json").read_text()

    def full_disk(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_config(dict(text="new"), tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_directories_without_a_readable_config(tmp_path):
    with pytest.raises(ConfigError, match="is not a run directory: it has no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        read_config(tmp_path)


def test_differences_name_changed_new_and_absent_leaves():
    old = dict(a=1, b=dict(c=(1, 2), d="x"), gone=0, mix=[dict(w=1), dict(w=2)])
    new = dict(a=1, b=dict(c=[1, 3], d="x"), more=None, mix=[dict(w=1), dict(w=3)])
    assert config_differences(old, new) == {
        "b.c": ([1, 2], [1, 3]),
        "gone": (0, "<absent>"),
        "mix.1.w": (2, 3),
        "more": ("<absent>", None),
    }
