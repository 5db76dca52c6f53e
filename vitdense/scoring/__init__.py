"""Scores of anybody's predictions in files: the truth in one folder, predictions in another."""
