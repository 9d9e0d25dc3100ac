"""One process for all tests: eight virtual CPU devices and a compile cache shared by runs."""

import importlib.metadata
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little: unoptimised code compiles three times as fast.
FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # later versions end at a flag they lack
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

GOLDEN = pathlib.Path(__file__).parent / "golden"
