"""The chat: its lines, its commands, and where it is stored."""
