"""Decoding: bytes of a source become events. Pure functions; malformed input is an error of its own, never a crash."""
