"""Model bundles: manifest, archive, canonical graph, encoding, self-test."""
