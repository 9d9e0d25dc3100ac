"""A page to play with a model, in the browser of this machine.

python -m emu3_jax.demo [--model=DIR] [--vision_tokenizer=DIR] [--port=7860]

It draws, chats about images, films, and looks inside an image: its codes, what they keep of it, and
how likely the model finds each. Several visitors at once share the batches of the model.

DIR are as for `python -m emu3_jax.generate`: run directories, released weights, or names of shipped
models; default: the shipped ones. Only this machine can open the page, unless --host=0.0.0.0 (all
that reach it) or another address is given. Whoever opens it may use the model; there is no login.
"""

import pathlib
import signal
import sys
import threading

import jax
from absl import flags

from emu3_jax import command_line, shipped
from emu3_jax.demo.exhibit import OTHERS_SHOW, SHOWS, Exhibit
from emu3_jax.demo.handlers import Handlers
from emu3_jax.demo.visitors import Visitors
from emu3_jax.foreign import optional
from emu3_jax.generate import codec, presets
from emu3_jax.generate.serving import Serving
from emu3_jax.interop.bundle import Bundle, load_language, with_vision
from emu3_jax.interop.formats.safetensors_io import DTYPES
from emu3_jax.interop.language.language_config import read_further
from emu3_jax.train import weights

MODEL = command_line.define_path("model", shipped.language_model, "The language model.")
VISION = command_line.define_path("vision_tokenizer", shipped.vision_tokenizer, "Its codes.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of a run directory; default: the newest.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: all of them.")
PORT = flags.DEFINE_integer("port", None, "Default: the first that is free from 7860 on.")
ROWS = flags.DEFINE_integer("rows", 8, "Images that are drawn at once, of all visitors.", 1)
DTYPE = flags.DEFINE_enum(
    "dtype", None, tuple(DTYPES), "Type of the model's weights; default: float32, or as trained."
)
QUANTIZE = flags.DEFINE_list("quantize", [], "What is int8: weights, cache, or both.")
command_line.define_mesh()


def exhibit_of(bundle: Bundle, serving: Serving, model: str, vision: str) -> Exhibit:
    """A loaded model, as the page shows it; `model` and `vision` are its directories."""
    side = bundle.vision.config.spatial_factor
    limits = codec.pixel_limits(vision, side, trained=bundle.media)
    stated = read_further(model).get("image_area")
    area = stated or min(limits.max_pixels, presets.GEN_AREA)
    folder = pathlib.Path(model)
    if folder.parent != shipped.ASSETS:
        return Exhibit(bundle, serving, limits, area, **OTHERS_SHOW)
    return Exhibit(bundle, serving, limits, area, **SHOWS[folder.name])


def main() -> None:
    """Reads the flags, loads the models, serves the page until Ctrl-C."""
    optional("gradio", "the page", "-r requirements-demo.txt")
    from emu3_jax.demo import site

    model = MODEL.value or shipped.language_model("styles")
    vision = VISION.value or shipped.vision_tokenizer("styles")
    # Ends as after Ctrl-C: files of visitors are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    load_language(model)  # names what is missing before weights are read
    mesh = command_line.mesh()
    tokenizer = weights.load_vision_tokenizer(vision, mesh=mesh)
    rounded = "weights" in QUANTIZE.value
    bundle, label = weights.load_language_model(model, STEP.value, mesh, DTYPE.value, rounded)
    bundle = with_vision(bundle, *tokenizer, str(vision), label)
    with (
        jax.set_mesh(mesh),
        Serving(bundle, ROWS.value, "cache" in QUANTIZE.value, mesh) as serving,
    ):
        exhibit = exhibit_of(bundle, serving, str(model), str(vision))
        # Its name alone: visitors need not know the folders of this machine.
        name = pathlib.Path(label).name
        handlers = Handlers(exhibit, Visitors())
        with site.served(handlers, name, HOST.value, PORT.value) as address:
            print(f"The page is at {address}  (Ctrl-C ends it)", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    command_line.run(main, __doc__)
