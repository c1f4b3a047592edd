"""The protocols of the embedded world."""

from harness.protocols import Protocol

PROTOCOLS = (
    Protocol(
        name="scenes-default",
        dataset="scenes",
        summary="the model card's sampling, blocks of 16 prompts, float32; the seed is given by --seed",
    ),
    Protocol(
        name="scenes-pinned",
        dataset="scenes",
        summary="as scenes-default with the seed fixed, for numbers that are to be compared between papers",
        seed=20250101,
    ),
)
