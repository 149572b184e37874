"""One module per contestant, importing one library: see `benchmarks.worker` for what a module holds."""
