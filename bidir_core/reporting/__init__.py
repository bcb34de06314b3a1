"""A report from runs: which runs belong to which arm, contrasts, sentences, tables, layout.

Read in this order: ``arms`` (which arm a run belongs to), ``study`` (runs to a study),
``contrasts`` (its paired numbers), ``numbers`` (all of them, computed once), ``answers`` (numbers
to sentences), ``accuracy_tables``, ``difference_tables`` and ``run_tables`` (numbers to tables),
``sections`` (the layout).
Nothing here imports torch: the app's server reads reports too.
"""
