"""NIR, the Neuromorphic Intermediate Representation (neuroir.org), in and out: a file ↔ the canonical graph.

A NIR file says neither how long a step is, nor how a neuron is reset, nor how it compares: ``semantics`` holds what the
caller has to say, with a preset for each framework that writes such files.
"""
