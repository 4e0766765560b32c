"""TensorRT in a worker: NVIDIA's GPUs, from JetPack 5 (8.5, Python 3.8) to 11 and TensorRT for RTX, by one adapter.

``cuda`` is the driver, ``api`` the calls of TensorRT that all versions have, ``build`` makes a plan, ``launch`` runs
one, ``model`` is a loaded bundle. An engine's name decides its numbers; each has a file with a class ``Engine``.
Standard library and NumPy; the package of TensorRT is imported by ``api`` alone, after ``cuda`` has seen a GPU.
"""
