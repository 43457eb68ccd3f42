"""JSON schemas as grammars that constrain an answer."""
