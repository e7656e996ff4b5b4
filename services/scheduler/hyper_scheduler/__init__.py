"""Recipes in, tasks out: the scheduler service."""
