"""Encoding: records become OTLP."""
