"""Where the damage comes from: sweeps, controls, why, observed attention, generation."""
