"""Containers: which container and pod an image belongs to."""
