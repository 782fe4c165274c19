"""HTTP server that runs one elastic model at the variant that each request and the load call for."""
