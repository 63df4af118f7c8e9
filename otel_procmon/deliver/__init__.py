"""Delivery: OTLP leaves the process, for a Collector or a file."""
