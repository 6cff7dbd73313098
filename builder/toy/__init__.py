"""Toy models and their task: a real teacher and student small enough to distil in minutes on two cores."""
