"""The evaluation behind the tables of SVDQuant (https://arxiv.org/abs/2411.05007), as its code does it.

Noise: the pipelines there draw it in their own dtype from one CPU generator an image; casting a float32 draw,
as is done here, gives the same numbers (a test says so).
"""

from harness.protocols import ModelSettings, Protocol

PROTOCOLS = (
    Protocol(
        name="svdquant-2024",
        dataset="mjhq",
        summary="SVDQuant's tables: 5,000 shuffled prompts each of mjhq and sdci, seeds from file names",
        seed=12345,
        block=1,
        selection="shuffled by Random(0)",
        seeds="rolling hash",
        calibration_dataset="qdiff",
        calibration_prompts=128,
        policy="published",
        models={
            "flux.1-dev": ModelSettings("bfloat16", 50, 3.5, 1024, 1024),
            "flux.1-schnell": ModelSettings("bfloat16", 4, 0.0, 1024, 1024),
            "pixart-sigma": ModelSettings("float16", 20, 4.5, 1024, 1024),
            "sana-1.6b": ModelSettings("bfloat16", 20, 4.5, 1024, 1024),
            "sdxl-turbo": ModelSettings("float16", 4, 0.0, 512, 512),
            "sdxl": ModelSettings("float16", 30, 5.0, 1024, 1024),
        },
        published_n=5000,
        source=(
            "arXiv 2411.05007 and the code of deepcompressor 0.0.2. Settled here: SDXL's guidance, which "
            "the code leaves to the library (5.0); calibration on whole trajectories of the 128 prompts, "
            "where the code draws 128 denoiser calls of them; models that the paper does not have need "
            "a policy of their own papers in their cards."
        ),
        fetches=("mjhq", "sdci", "qdiff"),
    ),
)
