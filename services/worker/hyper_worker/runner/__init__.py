"""Where attempts run: a shell command, or a function in a warm process."""
