"""Every method at 2, 3 and 4 weight bits, side by side."""

from __future__ import annotations

from harness.reports.tables.spec import ColumnSpec, TableSpec

_WIDTHS = (2, 3, 4)
_FIGURES = ("effective_bits", "weight_bytes", "psnr", "prompt_accuracy")

TABLE = TableSpec(
    name="bits-sweep",
    caption="Methods at 2, 3 and 4 weight bits",
    where={"wbits": list(_WIDTHS)},
    columns=(
        ColumnSpec("method"),
        ColumnSpec("abits"),
        *(
            ColumnSpec(name, {"wbits": width}, span=f"W{width}", digits=1 if name == "psnr" else None)
            for width in _WIDTHS
            for name in _FIGURES
        ),
    ),
    rows=("model", "method", "variant", "abits", "device", "dataset"),
    split=("model", "dataset"),
)
