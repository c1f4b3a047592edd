"""Methods of other libraries in the same grid, one file per library: importing this registers them.

No library is imported before a method runs; one that is not installed makes its cells `unsupported`.
"""

from __future__ import annotations

from harness.methods.libraries import bitsandbytes, gguf, quanto, torchao

__all__ = ["bitsandbytes", "gguf", "quanto", "torchao"]
