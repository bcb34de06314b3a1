"""Loading, attention, the probe, families, kernels."""
