"""What the pipelines on the embedded corpus share: where things lie, and the stages of both."""

import dataclasses
import pathlib

from emu3_jax import shipped
from emu3_jax.pipeline.stage import Stage, assets

# How images and clips are drawn. A small model follows a caption weakly, so more guidance than the
# released 3 helps; docs/reference/measurements.md has the figures.
DRAWING = ("--guidance=6", "--temperature=0.7", "--top_k=200")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiPlan:
    """Inputs and outputs; tests replace the paths.

    Attributes:
      directory: folder for all output.
      corpus_zip, vision_tokenizer: inputs shipped with the project.
      limit: items of a split that the language models are evaluated on; 0 for all.
    """

    directory: pathlib.Path
    corpus_zip: pathlib.Path = pathlib.Path("assets/fluent_emoji.zip")
    vision_tokenizer: pathlib.Path = pathlib.Path("assets/vision_tokenizer_nano")
    limit: int = 64

    @property
    def corpus(self) -> pathlib.Path:
        """The unpacked corpus."""
        return self.directory / "corpus"

    @property
    def tokens(self) -> pathlib.Path:
        """The token datasets, one per split."""
        return self.directory / "tokens"

    @property
    def report(self) -> pathlib.Path:
        """The report."""
        return self.directory / "report.html"

    def evaluation(self, of: str) -> pathlib.Path:
        """Results of a model."""
        return self.directory / "evaluation" / of

    def unpacking(self) -> Stage:
        """The corpus."""
        return Stage(
            "corpus",
            "Unpack the corpus: images, clips, captions",
            ("-m", "emu3_jax.data.fluent_emoji", f"--zip={self.corpus_zip}",
             f"--output={self.corpus}"),
            inputs=assets(self.corpus_zip),
            outputs=(self.corpus,),
        )  # fmt: skip

    def tokenizing(self, config: str, *options: str, inputs: tuple = ()) -> Stage:
        """The token datasets, by a config with further options and the files that these name."""
        return Stage(
            "tokens",
            "Tokenize images, clips and captions into ArrayRecord shards",
            ("-m", "emu3_jax.tokenize", f"--config={config}", "--config.corpus_zip=",
             f"--config.corpus={self.corpus}", f"--config.output={self.tokens}",
             f"--config.vision_tokenizer={self.vision_tokenizer}", *options),
            after=("corpus",),
            inputs=(shipped.config_file(config), *assets(self.vision_tokenizer), *inputs),
            outputs=(self.tokens,),
            resumable=True,
        )  # fmt: skip

    def measuring(self, name: str, model: pathlib.Path, **rest) -> Stage:
        """Likelihood, captions and drawn images of a language model; `rest` are fields of Stage."""
        evaluators = "likelihood,emoji_captions,emoji_retrieval"
        return Stage(
            f"evaluate_{name}",
            f"Evaluate the {name} model: likelihood, captions, drawn images",
            ("-m", "emu3_jax.evaluate", f"--evaluators={evaluators}", f"--model={model}",
             f"--vision_tokenizer={self.vision_tokenizer}", f"--data={self.corpus}",
             f"--tokens={self.tokens}", f"--limit={self.limit}", *DRAWING,
             f"--output={self.evaluation(name)}"),
            outputs=(self.evaluation(name),),
            **rest,
        )  # fmt: skip
