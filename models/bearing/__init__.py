"""The bundled model ``bearing``: the vibration of a ball bearing, as a small spiking CNN."""
