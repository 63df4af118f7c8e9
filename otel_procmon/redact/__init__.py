"""Takes secrets out of command lines, before anything else sees them."""
