"""The agent that runs tasks on a machine."""
