"""Prompt sets, one file or folder each, and the rule that selects from them."""
