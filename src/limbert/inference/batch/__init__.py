"""Answers for more texts than one machine can give: shards, workers, and what goes on after a kill."""
