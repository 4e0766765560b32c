"""ANN to spiking conversion on ONNX graphs."""
