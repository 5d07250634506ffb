"""A verb each; only the command line imports them."""
