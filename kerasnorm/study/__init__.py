"""Many runs as one study: the grid, its folder, who trains them, and what they amount to."""
