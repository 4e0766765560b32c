"""The bundled model ``nmnist``: recordings of an event camera that looks at digits, as a small spiking CNN."""
