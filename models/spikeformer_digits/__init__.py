"""A tiny vision transformer on handwritten digits, converted without training: a demonstration of ``transformer``."""
