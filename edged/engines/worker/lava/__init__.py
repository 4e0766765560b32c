"""Lava: the way to Loihi 2, and its simulation on a CPU. Runs on Python 3.10, where lava-nc runs.

A step graph becomes a network of Lava's own neurons and synapses:

- ``affine``     what a tensor is made of: weighted spikes, inputs and states
- ``network``    populations, links, depths; refuses what Lava cannot do, by node
- ``neurons``    a population as Lava's LIF in floating point; ``fixed`` the same in Loihi's integers
- ``wiring``     Lava's processes
- ``inproc``     runs them in one thread; ``runtime`` in Lava's own, a process each
- ``model``      windows and steps; ``tail`` what is computed from the spikes
- ``engine``     the engines' common part; ``cpu``, ``cpu_fixed``, ``sim`` and ``loihi2`` are the engines

docs/lava.md holds the table of what runs and what is refused.
"""
