"""A report from runs: which runs belong to which arm, contrasts, sentences, tables, layout.

Read in this order: ``arms`` (runs to a study), ``contrasts`` (the study's paired numbers),
``answers`` (numbers to sentences), ``tables`` (numbers to tables), ``report.md.j2`` (the layout).
Nothing here imports torch: the app's server reads reports too.
"""
