"""Rows of ``profile.jsonl``."""

from limbert.evaluation.profile_rows import ProfileRow, ProfileSetup

CELL = ProfileSetup("torch", "cpu", 1, 2, 16)


ROW = ProfileRow("1x1", 10, 20, 30, None, 1.5, 2.5, 600.0, 5, CELL, {"cpu": "a"}, {"torch": "2"}, "2026-01-01T00:00:00")
