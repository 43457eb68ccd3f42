"""The models on this machine: to fetch, list, check, remove."""
