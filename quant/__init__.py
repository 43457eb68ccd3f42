"""Hugging Face checkpoints of the Qwen3 family to GGUF."""
