"""Bidirectional prefill in decoder-only language models: measure it, explain it, repair it."""

__version__ = "0.1.0"
