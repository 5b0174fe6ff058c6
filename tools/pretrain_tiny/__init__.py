"""How the weights of the embedded backbone were made."""
