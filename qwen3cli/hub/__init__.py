"""The Hugging Face Hub, its local cache, and the names of models."""
