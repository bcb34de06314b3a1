"""Run folders: layout, records, writer and reader; lm-eval in and out."""
