"""Whether a run is worse than a baseline: comparisons of records, verdicts, and their reports. No torch."""
