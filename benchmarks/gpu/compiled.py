"""What a forward pass of decoding moves on an H100 that is not there, by XLA's GPU compiler.

  pip install jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc   # the compiler; no GPU is needed
  PYTHONPATH=. python -m benchmarks.gpu.compiled

Emu3-8B draws an image of 720 x 720 with guidance and top-k 2,048, as in drawing.py; a line of the
table for each decoder, with weights and cache in bfloat16 and in int8, over a list of layers or one
stack. The bytes are those of the compiled loop (`emu3_jax.aot.traffic`), in the first and the last
stage of the cache, the mean over the image on the line through both. Milliseconds are bytes by the
bandwidth of the card. The compiler cannot try out kernels without a card, so there it may choose
others.
"""

import jax
from jax.experimental import topologies

from benchmarks.gpu import card
from configs import emu3_8b_stage1
from emu3_jax.aot import decoding_step
from emu3_jax.aot.compile_and_report import program_of
from emu3_jax.aot.topology import Machine
from emu3_jax.figures.markdown_tables import table

# What the driver reports of the SXM card, as in XLA's target_config/specs/h100_sxm.txtpb.
H100 = """
gpu_device_info {
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  cuda_compute_capability { major: 9 }
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
INT8 = ("weights", "cache")
CASES = [
    *((window, int8, False) for window in (None, 64) for int8 in ((), INT8)),
    *((None, int8, True) for int8 in ((), INT8)),
]


def h100() -> Machine:
    """The card, to compile for."""
    one = "1x1x1"
    devices = topologies.get_topology_desc(
        one, platform="cuda", target_config=H100, topology=one
    ).devices
    gb_per_s = card.bandwidth(devices[0].device_kind) / 1e9
    return Machine("h100", list(devices), 1, 80, hbm_gb_per_s=gb_per_s)


def row(machine: Machine, window: int | None, int8: tuple[str, ...], stacked: bool) -> list[str]:
    """The cells of one case."""
    config = emu3_8b_stage1.get_config()
    config.model.scan_layers = stacked
    decoder = {} if window is None else {"decoder": "jacobi", "window": window}
    program = program_of(config, "sample", {**decoder, "quantize": int8})
    step = decoding_step.measure(program, machine)
    seconds = [step.passes * ms / 1e3 for ms in (step.ms, step.floor_ms)] if step.passes else []
    return [
        decoder.get("decoder", "sequential"),
        str(program.decoder.width),
        "int8" if int8 else "bfloat16",
        "stack" if stacked else "list",
        f"{step.gb:.1f} GB",
        f"{step.ratio:.2f} × {step.floor_gb:.1f}",
        f"{step.ms:.1f}",
        ", ".join(f"{one:.1f} s" for one in seconds),
    ]


def main() -> None:
    """Prints the table."""
    jax.config.update("jax_platforms", "cpu")
    machine = h100()
    head = ["decoder", "tokens of a pass", "weights and cache", "layers", "moves", "of the least"]
    head += ["ms", "an image; at the least"]
    rows = []
    for case in CASES:
        rows.append(row(machine, *case))
        print(*rows[-1], sep=" | ", flush=True)
    print(table(head, rows))


if __name__ == "__main__":
    main()
