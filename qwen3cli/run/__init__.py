"""Questions and their answers, one or many, and the proofs of them."""
