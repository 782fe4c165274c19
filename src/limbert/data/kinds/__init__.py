"""What differs between kinds of tasks: how data is read, made ready, scored and answered. ``table`` joins it."""
