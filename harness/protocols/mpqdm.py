"""The text-to-image setting of MPQ-DM (https://arxiv.org/abs/2412.11549): Stable Diffusion 1.4 on COCO."""

from harness.protocols import ModelSettings, Protocol

PROTOCOLS = (
    Protocol(
        name="mpqdm-sd14-coco10k",
        dataset="coco",
        summary="MPQ-DM's Stable Diffusion 1.4: 10,000 prompts of COCO 2014, PLMS 50 steps, guidance 7.5",
        selection="shuffled by Random(0)",
        seed=0,
        block=8,
        policy="published",
        models={"sd-1.4": ModelSettings("float32", 50, 7.5, 512, 512)},
        published_n=10_000,
        source=(
            "MPQ-DM; give captions_val2014.json as coco. Settled here, as the paper says only that 10,000 "
            "random prompts were used: which ones, their captions and seeds, and calibration on prompts of "
            "the same file that are not evaluated."
        ),
        fetches=("coco-2014",),
    ),
)
