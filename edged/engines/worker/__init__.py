"""What runs in a worker process, on its own interpreter: one file an engine. Importable on Python 3.8."""
