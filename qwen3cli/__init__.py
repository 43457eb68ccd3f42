"""qwen3: a local runtime for the Qwen3 family."""

__version__ = "0.1.0"
