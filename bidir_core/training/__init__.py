"""Fine-tuning: data, packing, objectives, checkpoints, the training probe and the loop.

Read in this order: ``config`` (what can be decided), ``sources`` and ``mixtures`` (where samples
come from), ``decontaminate`` (which of them may be used), ``encode`` and ``packing`` (samples to
batches), ``objectives`` (batches to losses), ``train_probe``, ``checkpoints`` and ``loop``.
"""
