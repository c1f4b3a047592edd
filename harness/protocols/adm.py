"""The evaluation of ADM (https://arxiv.org/abs/2105.05233): 50,000 images against its reference batches."""

from harness.protocols import ModelSettings, Protocol

PROTOCOLS = (
    Protocol(
        name="adm-50k",
        dataset="classes",
        summary="50,000 images, 50 of each ImageNet class (or as many seeds), for ADM's reference batches",
        seed=0,
        block=50,
        models={
            "ldm-4-imagenet": ModelSettings("float32", 20, 3.0, 256, 256),
            "ldm-4-bedroom": ModelSettings("float32", 100, None, 256, 256),
            "dit-xl-2": ModelSettings("float32", 250, 1.5, 256, 256),
        },
        published_n=50_000,
        source=(
            "guided-diffusion's evaluation, with the samplers of the quantization papers: LDM-4 ImageNet "
            "DDIM 20 steps, eta 0, guidance 3.0; LSUN Bedroom DDIM 100 steps, eta 1 (MPQ-DM; give "
            "--dataset unconditional); DiT-XL/2 250 steps, guidance 1.5. Settled here: the order of the "
            "classes, of which every one comes once before any comes again, and the seeds."
        ),
        fetches=("adm-imagenet",),
    ),
)
