"""Answers for more texts than one machine can answer: shards, the workers that answer them, what goes on after a kill."""
