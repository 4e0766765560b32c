"""Engines behind worker processes: wire protocol, client, worker core. Importable on Python 3.8."""
