"""Packing, scoring and evaluating."""
