"""The canonical graph: the ONNX domain ``edged.snn``, its checks, and the plans derived from it."""
