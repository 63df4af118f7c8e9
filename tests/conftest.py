"""Shared by all tiers."""
