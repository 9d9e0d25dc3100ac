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

import hypothesis
import jax
import pytest

# An example that takes long is no failure: the machine may be slow, or busy.
slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=slow)
hypothesis.settings.load_profile("any machine")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Compiled programs go with their file: together they take more memory maps than Linux gives.

    Each takes several of the 65,530 that a process may have (`vm.max_map_count`). Beyond them the
    compiler ends with a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def first_device():
    """A mesh of one device."""
    from emu3_jax import sharding

    return sharding.make_mesh(sharding.MeshConfig(fsdp=1), jax.devices()[:1])


@pytest.fixture(scope="session")
def tiny_directories(tmp_path_factory):
    """A folder with language/ and vision/, tiny random models; to be read only."""
    from tiny_models import save_models

    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_directories):
    """Both models of `tiny_directories`, on the device."""
    from emu3_jax.interop.bundle import with_vision
    from emu3_jax.train import weights

    found, _ = weights.load_language_model(tiny_directories / "language")
    return with_vision(found, *weights.load_vision_tokenizer(tiny_directories / "vision"))


@pytest.fixture
def tiny_runner(tiny_bundle, tmp_path):
    """A generation job's runner that writes to tmp_path/out."""
    from tiny_models import LIMITS

    from emu3_jax.generate import modalities
    from emu3_jax.generate.job_runner import Runner

    about = {"model": "m", "vision_tokenizer": "v"}
    return Runner(tiny_bundle, tmp_path / "out", LIMITS, modalities.Options(), about)


@pytest.fixture(scope="session")
def exhibit(tiny_bundle):
    """The models of `tiny_bundle` on the page of `emu3_jax.demo`."""
    from tiny_models import GUIDED, LIMITS

    from emu3_jax.demo.exhibit import Exhibit
    from emu3_jax.generate.serving import Serving

    with Serving(tiny_bundle, rows=4) as serving:
        yield Exhibit(tiny_bundle, serving, LIMITS, 64, GUIDED, ("a", "b"), fps=4.0)
