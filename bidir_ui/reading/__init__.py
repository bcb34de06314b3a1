"""What pages read of runs: cached tables, pairs, filters, seeds, the story."""
