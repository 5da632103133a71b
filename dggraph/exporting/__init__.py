"""Networks as files for other runtimes, and as plain static networks."""
