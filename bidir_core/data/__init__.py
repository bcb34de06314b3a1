"""Items, tasks, their encoding, and the assets they come from."""
