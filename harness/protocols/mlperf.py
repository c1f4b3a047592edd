"""MLPerf inference, text to image: SDXL on 5,000 captions of COCO 2014."""

from harness.protocols import ModelSettings, Protocol

PROTOCOLS = (
    Protocol(
        name="mlperf-sdxl",
        dataset="coco",
        summary="MLPerf's SDXL task: its 5,000 COCO captions in order, one noise for all images",
        seed=0,
        block=1,
        seeds="shared",
        calibration_dataset="qdiff",
        calibration_prompts=128,
        models={
            "sdxl": ModelSettings(
                "float32",
                20,
                8.0,
                1024,
                1024,
                "normal quality, low quality, worst quality, low res, blurry, nsfw, nude",
            ),
        },
        published_n=5000,
        source=(
            "https://github.com/mlcommons/inference, text_to_image; give its captions_source.tsv as coco. "
            "Settled here: the shared noise is drawn from seed 0 and is not MLPerf's latents.pt; "
            "calibration is on qdiff, which shares images and captions with the evaluation (`harness "
            "leaks` counts them)."
        ),
        fetches=("coco-mlperf", "qdiff"),
    ),
)
