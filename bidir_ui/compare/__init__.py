"""The Compare and Flips pages."""
