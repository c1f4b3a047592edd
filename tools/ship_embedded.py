"""Put trained embedded models into the package, and draw what docs/embedded.md shows of their training.

python tools/ship_embedded.py --trained train-out
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedded import shipping


def main() -> None:
    """Copy, sum up, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trained", type=Path, required=True)
    options = parser.parse_args()
    shipping.copy_models(options.trained)
    print(f"{shipping.write_sums() / 1e6:.1f} MB shipped")
    shipping.draw_losses(options.trained)
    shipping.draw_samples()


if __name__ == "__main__":
    main()
