"""Figures of a cell by what they are formed from; `harness.reduce` puts them together."""
