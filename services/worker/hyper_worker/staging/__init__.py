"""What a task finds around it, and what becomes of what it leaves behind."""
