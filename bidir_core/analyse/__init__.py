"""What runs allow us to say: statistics, pairing, studies, contrasts, verdicts, flips."""
