"""What attention over windows costs next to dense attention and every real peer, on this machine: `python -m benchmarks --help`."""
