"""Running a trained model: loading, policies, the engine, and the runtimes."""
