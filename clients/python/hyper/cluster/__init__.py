"""A whole cluster on this machine: servers and services as child processes.

Nothing here imports a service: they are started as `python -m ...` and spoken to over the wire.
"""
