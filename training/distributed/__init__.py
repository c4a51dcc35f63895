"""Ranks: their numbers, their meeting point, their process groups, and their devices."""
