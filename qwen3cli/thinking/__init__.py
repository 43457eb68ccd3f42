"""Thinking: how long, and where it ends."""
