"""The demo: a whole device of real processes on this machine, fed with images whose labels are known.

``__main__`` runs it from start to end, ``machine`` starts and stops the processes, ``books`` compares what arrived with
what was fed, ``screen`` shows it. Knows the product only from outside: files, HTTP, MQTT and the contract of the link.
"""
