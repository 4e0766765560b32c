"""Bundled models, each with the scripts that made it."""
