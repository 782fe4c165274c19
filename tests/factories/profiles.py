"""A setup and a row of ``profile.jsonl``."""

from limbert.evaluation.results import ProfileRow, ProfileSetup

SETUP = ProfileSetup("torch", "cpu", 1, 2, 16)
ROW = ProfileRow(
    "1x1", 10, 20, 30, None, 1.5, 2.5, 600.0, 5, SETUP, {"cpu": "a"}, {"torch": "2"}, "2026-01-01T00:00:00"
)
