"""HTTP on loopback: Open Inference Protocol v2, health, metrics, page."""
