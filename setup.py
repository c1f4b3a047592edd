"""Maps the top-level folders to subpackages of `harness`; everything else is in pyproject.toml.

`datasets` and `kernels` are also names of well-known packages, so nothing may be installed under those bare
names. The list of packages is found rather than written, so that a new subfolder cannot be forgotten.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "harness": "harness",
    "harness.datasets": "datasets",
    "harness.kernels": "kernels",
    "harness.methods": "methods",
    "harness.reports": "reports",
}

packages = [
    name
    for root, folder in FOLDERS.items()
    for name in (root, *(f"{root}.{sub}" for sub in find_packages(folder)))
]

setup(
    packages=packages,
    package_dir=FOLDERS,
    package_data={
        "harness": ["py.typed"],
        "harness.models": ["embedded/**/*"],
        "harness.datasets": ["scenes/assets/*"],
        "harness.reports": ["templates/*"],
        "harness.reports.leaderboard": ["*.jsonl", "*.seal.json"],
    },
)
