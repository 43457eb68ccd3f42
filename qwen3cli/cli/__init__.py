"""The commands of qwen3: flags, defaults, exit codes."""
