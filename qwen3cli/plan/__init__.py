"""What fits into this machine, and how fast it will be."""
