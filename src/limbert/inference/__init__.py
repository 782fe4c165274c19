"""Running a trained model: loading, predictions, policies, the engine, and the runtimes."""
