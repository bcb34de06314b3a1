"""The Launch page and its jobs."""
