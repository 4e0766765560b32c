"""``edged backup`` and ``edged restore``: the buffer, the models and the configuration of a device in one file.

Rules: taken while the daemon works; a file appears whole or not at all; what is restored is verified whole before
anything changes, never overwrites anything, and begins a new epoch. A backup holds the device's secrets: mode 0600.
"""
