"""python -m qwen3cli: the command qwen3."""

from qwen3cli.cli import main

main()
