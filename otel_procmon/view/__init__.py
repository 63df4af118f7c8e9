"""Views: what happened, as Tetragon would tell it, for terminals and files."""
