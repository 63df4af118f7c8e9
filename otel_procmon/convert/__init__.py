"""Conversion: what happened to an image becomes log records and spans with OpenTelemetry's attributes."""
