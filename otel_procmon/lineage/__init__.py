"""Lineage: events become images with a parent, a trace and ancestors, and what happened to them."""
