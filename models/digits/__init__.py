"""The bundled model ``digits``: scikit-learn's handwritten digits, as a small spiking CNN."""
