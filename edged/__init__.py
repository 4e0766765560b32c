"""edged: an edge-first, offline inference daemon for spiking neural networks.

Kept empty of imports: workers load ``edged.engines`` on interpreters as old as Python 3.8.
"""

__version__ = "0.1.0"
