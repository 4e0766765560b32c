"""ANN to spiking conversion on ONNX graphs: load → fold → calibrate → spiking step graph → report → bundle.

Each pass is a file with pure functions from one value to the next; ``pipeline.convert`` runs them in order, ``cli`` is
the command ``edged-convert``. The recipe, its sources and its limits: ``docs/conversion.md``.
"""
