"""What pages read of runs: cached tables, pairs, filters, the scorecard."""
