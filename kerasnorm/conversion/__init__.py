"""Other norms for a trained network: replaced, removed, folded or measured anew."""
