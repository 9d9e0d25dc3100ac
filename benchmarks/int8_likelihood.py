"""What int8 weights and an int8 cache cost in held-out likelihood.

  PYTHONPATH=. python benchmarks/int8_likelihood.py --tokens=runs/tokens_nano [--model=nano] \\
    [--limit=0] [--batch_size=16]

Reads the validation documents as decoding does: every token attends to keys and values as the cache
stores them. Prints the mean nats of the codes of each task, in float32 and with int8, and the
standard error of the difference over documents.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.evaluate.language.token_documents import dataset_path, documents_by_task
from emu3_jax.models.language import int8
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.sequence import TokenClass
from emu3_jax.train import weights

TASKS = ("text_to_image", "text_to_video")
CODES = (TokenClass.IMAGE, TokenClass.VIDEO)
SETTINGS = ((), ("weights",), ("cache",), ("weights", "cache"))


def scorer(model, rows: int, quantized_cache: bool):
    """Jitted (params, ids [R, S], positions [R, S]) → nats of the token after each, [R, S - 1]."""

    @jax.jit
    def nats(params, ids_RS, positions_RS):
        cache = KVCache.zeros(model.config, rows, 1, quantized_cache)
        none_R1 = jnp.zeros((rows, 1), bool)
        inputs = (ids_RS[:, :-1], positions_RS[:, :-1], cache, none_R1)
        with int8.reading():
            x_RSD, _ = model.apply({"params": params}, *inputs, method="read")
        logits_RSV = model.apply({"params": params}, x_RSD, method="logits")
        log_p_RSV = jax.nn.log_softmax(logits_RSV)
        return -jnp.take_along_axis(log_p_RSV, ids_RS[:, 1:, None], axis=-1)[..., 0]

    return nats


def nats_of(nats, params, documents, rows: int) -> np.ndarray:
    """Mean nats of the codes of each document."""
    length = -(-max(len(d.ids) for d in documents) // 64) * 64
    found = []
    for start in range(0, len(documents), rows):
        group = documents[start : start + rows]
        ids_RS = np.zeros((rows, length), np.int32)
        positions_RS = np.full((rows, length), -1, np.int32)
        for r, document in enumerate(group):
            ids_RS[r, : len(document.ids)] = document.ids
            positions_RS[r, : len(document.ids)] = np.arange(len(document.ids))
        nats_RS = np.asarray(nats(params, ids_RS, positions_RS), np.float64)
        for r, document in enumerate(group):
            is_code = np.isin(document.classes[1:], CODES)
            found.append(nats_RS[r, : len(document.ids) - 1][is_code].mean())
    return np.array(found)


def main() -> None:
    """Prints a line for each task and setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()
    bundles = {q: weights.load_language_model(options.model, quantized=q)[0] for q in (False, True)}
    path = dataset_path(options.tokens, "validation")
    fingerprint = bundles[False].vision_fingerprint
    by_task = documents_by_task(path, bundles[False].grammar, fingerprint, options.limit)
    for task in TASKS:
        first = None
        for setting in SETTINGS:
            bundle = bundles["weights" in setting]
            nats = scorer(bundle.model, options.batch_size, "cache" in setting)
            params = bundle.variables["params"]
            found = nats_of(nats, params, by_task[task], options.batch_size)
            first = found if first is None else first
            away = found - first
            error = away.std(ddof=1) / np.sqrt(len(away))
            print(
                f"{task}, {len(found)} documents, int8 {'+'.join(setting) or 'nothing'}: "
                f"{found.mean():.5f} nats, {away.mean():+.5f} ± {error:.5f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
