"""Presets: the published settings and prompts of Emu3, by name, each with its source."""

from emu3_jax.generate.decoding.sampling import Sampling

# image_generation.py of the released code: guidance 3, top-k 2048, temperature 1.
DEMO = Sampling(guidance=3.0, top_k=2048)
# Paper, appendix B.1: MSCOCO, T2I-CompBench and DPG-Bench.
PAPER_BENCHMARKS = Sampling(guidance=5.0, top_k=16384)
# Paper, appendix B.1: GenEval.
PAPER_GENEVAL = Sampling(guidance=5.5, top_k=16384)
# multimodal_understanding.py of the released code: no sampling, at most 1024 new tokens.
UNDERSTANDING = Sampling(temperature=0.0)
UNDERSTANDING_MAX_NEW = 1024

# image_generation.py; appended to the caption with its leading space.
POSITIVE_SUFFIX = " masterpiece, film grained, best quality."
NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
    "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, "
    "username, blurry."
)

# Pixels of one image: released config.json of Emu3-Gen (`image_area`, 720 * 720), and of
# Emu3-Stage1 and Emu3-Chat (512 * 512).
GEN_AREA = 518400
STAGE1_AREA = 262144

PRESETS = {
    "demo": DEMO,
    "paper_benchmarks": PAPER_BENCHMARKS,
    "paper_geneval": PAPER_GENEVAL,
    "understanding": UNDERSTANDING,
}
