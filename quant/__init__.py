"""The quantizer: weights of the Qwen3 family to GGUF, and whether a file is what it should be."""
