"""Trains the embedded models from nothing and ships them; not part of the installed package.

Importing this package prepares torchvision, which diffusers and transformers import.
"""

from harness.compat import ensure_torchvision

ensure_torchvision()
