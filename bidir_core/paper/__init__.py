"""A folder for a paper: figures, LaTeX tables, a methods text, references and a claims ledger.

Read in this order: ``latex`` (text and numbers that TeX takes as they are), ``ledger`` (every
printed number and where it comes from), ``quantities`` and ``interaction`` (the study's numbers as
entries of the ledger), ``claims``, ``tables``, ``methods``, ``figures``, ``bibliography``,
``write`` (the folder).
Nothing here imports torch, and matplotlib is imported only when figures are drawn.
"""
