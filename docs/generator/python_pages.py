"""Pages of the reference: the Python face. What is listed here is public."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from page_markdown import page

from emu3_jax.config.help import descriptions

# Page → its title, and module → public names; none: those of its __all__.
PUBLIC: Mapping[str, tuple[str, Mapping[str, Sequence[str]]]] = {
    "loading": ("Loading models", {
        "emu3_jax": (),
        "emu3_jax.interop.bundle": ("Bundle", "BundleError"),
    }),
    "generating": ("Drawing and reading", {
        "emu3_jax.generate": (),
        "emu3_jax.generate.modalities": (
            "Options", "text_to_image", "draw_images", "text_to_video", "draw_clips",
            "caption_images", "caption_videos",
        ),
        "emu3_jax.generate.codec": ("pixel_limits", "encode", "decode"),
        "emu3_jax.generate.completion.going_on": (
            "image_to_video", "extend_video", "predict_video",
        ),
        "emu3_jax.generate.completion.inpainting": ("inpaint",),
        "emu3_jax.generate.open_ended": (),
    }),
    "sequences": ("Documents and tokens", {
        "emu3_jax.sequence": (),
        "emu3_jax.vocab": ("Vocab", "released", "small"),
        "emu3_jax.text": (),
    }),
    "models": ("Models and meshes", {
        "emu3_jax.models.language.transformer": ("Transformer", "released", "count_parameters"),
        "emu3_jax.models.language.transformer_config": ("TransformerConfig",),
        "emu3_jax.models.vision.tokenizer": ("VisionTokenizer", "VisionOutput"),
        "emu3_jax.models.vision.tokenizer_config": ("VisionTokenizerConfig",),
        "emu3_jax.sharding": ("MeshConfig", "make_mesh", "one_device"),
    }),
    "data": ("Media and token datasets", {
        "emu3_jax.data.media": (),
        "emu3_jax.data.tokens.records": ("Record", "DatasetInfo", "TokenDataset", "open_dataset"),
    }),
    "extending": ("What to extend", {
        "emu3_jax.train.task": ("Task", "Loss", "TrainState"),
        "emu3_jax.data.batches": ("Batches",),
        "emu3_jax.evaluate.evaluator": (
            "Evaluator", "SplitEvaluator", "Subject", "Result", "Table",
        ),
        "emu3_jax.scorers.scorer": ("Scorer",),
        "emu3_jax.generate.decoding.decoders.decoder": ("Decoder",),
    }),
}  # fmt: skip
# Of linen modules: fields and hooks that say nothing about the model.
HIDDEN = "setup, name, parent, scope"


def public() -> Iterator[tuple[str, str, Any]]:
    """(module, name, object) of every public symbol."""
    for _, modules in PUBLIC.values():
        for path, names in modules.items():
            module = importlib.import_module(path)
            for name in names or module.__all__:
                yield path, name, getattr(module, name)


def problems() -> list[str]:
    """Public symbols, methods and fields without documentation."""
    found = []
    for path, name, value in public():
        where = f"{path}.{name}"
        if not inspect.isroutine(value) and not isinstance(value, type):
            found += [] if _constant(path, name)[1] else [f"{where}: no docstring below it"]
        elif not _own_docstring(value):
            found.append(f"{where}: no docstring")
        elif isinstance(value, type):
            found += [f"{where}.{member}: no documentation" for member in _bare_members(value)]
    return found


def _own_docstring(value: Any) -> str:
    """The docstring as written; that which dataclasses make is a signature alone."""
    text = inspect.getdoc(value) or ""
    made = isinstance(value, type) and text.startswith(f"{value.__name__}(")
    return "" if made else text


def _bare_members(cls: type) -> list[str]:
    """Public methods without a docstring, and fields that "Attributes:" leaves out."""
    bare = [
        name
        for name, member in vars(cls).items()
        if not name.startswith("_") and name not in HIDDEN.split(", ")
        and (inspect.isroutine(member) or isinstance(member, property))
        and not inspect.getdoc(getattr(cls, name))
    ]  # fmt: skip
    # Linen modules are dataclasses too, of one field: config.
    if dataclasses.is_dataclass(cls) and not hasattr(cls, "apply"):
        fields = {field.name for field in dataclasses.fields(cls)}
        bare += sorted(name for name in fields - descriptions(cls).keys() if name[0] != "_")
    return bare


def _constant(path: str, name: str) -> tuple[str, str]:
    """(the module that assigns a constant, the docstring below the assignment)."""
    body = ast.parse(pathlib.Path(importlib.import_module(path).__file__).read_text()).body
    for statement, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.ImportFrom) and name in [a.name for a in statement.names]:
            return _constant(statement.module, name)
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if name in [getattr(target, "id", "") for target in targets]:
            text = below.value if isinstance(below, ast.Expr) else None
            return path, text.value if isinstance(text, ast.Constant) else ""
    return path, ""


def pages() -> dict[str, str]:
    """File → Markdown with one directive per public symbol, and of the list of pages."""
    made = {}
    objects = {(path, name): value for path, name, value in public()}
    for page_name, (title, modules) in PUBLIC.items():
        body = []
        for path, names in modules.items():
            body += [f"## {path}\n", "```{eval-rst}"]
            for name in names or importlib.import_module(path).__all__:
                body.append(_directive(path, name, objects[path, name]))
            body.append("```\n")
        made[f"python/{page_name}.md"] = page(title, body)
    listed = [
        "What these pages hold is public; all else may change without a word in the "
        "[changelog](../repository/CHANGELOG.md). Letters at the end of a name give an array's "
        "axes, as in `x_BSD`: batch, sequence, width.\n",
        "```{toctree}", *PUBLIC, "```\n",
    ]  # fmt: skip
    made["python/index.md"] = page("Python", listed)
    return made


def _directive(path: str, name: str, value: Any) -> str:
    if isinstance(value, type):
        call = "\n   :special-members: __call__" if hasattr(value, "apply") else ""
        return f".. autoclass:: {path}.{name}\n   :members:\n   :exclude-members: {HIDDEN}{call}\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {path}.{name}\n"
    return f".. autodata:: {_constant(path, name)[0]}.{name}\n"
