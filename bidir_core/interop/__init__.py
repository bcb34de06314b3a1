"""Other evaluators' results: reading lm-eval's sample logs as runs, and writing runs as those.

samples_<task>_<time>.jsonl + results_<time>.json   <->   a run folder
"""
