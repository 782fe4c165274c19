"""The report of a run: pictures and one HTML page, made from the JSON lines that the run keeps."""
