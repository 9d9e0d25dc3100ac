"""What the page begins with."""

from emu3_jax import shipped
from emu3_jax.demo.exhibit import SHOWS


def test_every_shipped_model_has_captions_and_settings():
    assert set(SHOWS) == {path.name for path in shipped.ASSETS.glob("transformer_*")}
