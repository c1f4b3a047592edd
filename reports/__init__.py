"""Record schema, statistics, tables and pictures. Imports nothing else of the project, and no torch."""

from harness.reports.rows import load

__all__ = ["load"]
