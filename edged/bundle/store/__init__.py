"""The installed models of a device: what is there, what may run, and how one takes the place of another."""
