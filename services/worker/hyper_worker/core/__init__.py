"""The worker's decisions, pure: what happens comes in as events, what to do comes out as commands.

No clock, no I/O, no randomness: time arrives with each event.
"""
