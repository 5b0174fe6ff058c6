"""How good the answers, the parts and the masks are: pure functions on what the model returned."""
