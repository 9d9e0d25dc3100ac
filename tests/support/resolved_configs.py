"""Configs as the commands resolve them."""

from emu3_jax.config import to_dataclass, to_values
from emu3_jax.preferences.preferences_config import PreferencesConfig
from emu3_jax.tokenize.rate import RateConfig
from emu3_jax.tokenize.tokenize_config import TokenizeConfig
from emu3_jax.train.__main__ import resolve


def every_field(config) -> dict:
    """The config as it is resolved; None for the size of the vocabulary where the data states it.

    ConfigError for a key or type that does not exist.
    """
    values = config.to_dict()
    if "prompts" in values:
        return to_values(to_dataclass(PreferencesConfig, values))
    if "tokens" in values:
        return to_values(to_dataclass(RateConfig, values))
    if "task" not in values:
        return to_values(to_dataclass(TokenizeConfig, values))
    from_data = config.task in ("pretrain", "dpo", "grpo") and "vocab_size" not in config.model
    if from_data:
        values["model"] = {"vocab_size": 1, **values["model"]}
    values = to_values(resolve(values)[0])
    if from_data:
        values["model"]["vocab_size"] = None
    return values
