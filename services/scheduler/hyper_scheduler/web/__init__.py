"""The status page: what runs, where, and what it says, for people with a browser."""
