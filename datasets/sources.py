"""Where published prompt files can be had: address, licence and, where it is known, sha256."""

from __future__ import annotations

from dataclasses import dataclass

_HUB = "https://huggingface.co/datasets"
_RAW = "https://raw.githubusercontent.com"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"


@dataclass(frozen=True)
class Download:
    """One file.

    Attributes:
        dataset: the prompt set that reads it, or what it is for.
        url: its address.
        file: what it is called here.
        licence: as its publisher states it.
        sha256: of the file, where it is known; an address may come to hold something else.
        member: the file in the zip archive at `url` that is wanted, or empty when `url` is the file.
    """

    dataset: str
    url: str
    file: str
    licence: str
    sha256: str = ""
    member: str = ""


DOWNLOADS = {
    "mjhq": Download(
        "mjhq",
        f"{_HUB}/playgroundai/MJHQ-30K/resolve/main/meta_data.json",
        "meta_data.json",
        "see the dataset's card on the hub",
    ),
    "sdci": Download(
        "sdci",
        f"{_HUB}/mit-han-lab/svdquant-datasets/resolve/main/sDCI.yaml",
        "sDCI.yaml",
        "CC BY-NC 4.0",
    ),
    "qdiff": Download(
        "qdiff",
        f"{_RAW}/mit-han-lab/deepcompressor/main/examples/diffusion/prompts/qdiff.yaml",
        "qdiff.yaml",
        "Apache-2.0; captions of COCO, CC BY 4.0",
        "54da57563342ef07e2bc0fddf1d224823f55cdd93a75b88df8f293d88da1a361",
    ),
    "coco-mlperf": Download(
        "coco",
        f"{_RAW}/mlcommons/inference/master/text_to_image/coco2014/captions/captions_source.tsv",
        "captions_source.tsv",
        "Apache-2.0; captions of COCO, CC BY 4.0",
        "2eeb95637b30fe5af26dd644bafa7affe4e5472ad0bda32d0feb1bd261280d5e",
    ),
    "coco-2014": Download(
        "coco",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        "captions_val2014.json",
        "CC BY 4.0",
        member="annotations/captions_val2014.json",
    ),
    "adm-imagenet": Download(
        "adm",
        f"{_ADM}/imagenet/256/VIRTUAL_imagenet256_labeled.npz",
        "VIRTUAL_imagenet256_labeled.npz",
        "of ImageNet: research only",
    ),
}
