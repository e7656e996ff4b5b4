"""The scheduler's decisions, pure: events in, commands out. No I/O, no clock, no randomness."""
