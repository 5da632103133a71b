"""Training. Every module here may use the runtime; nothing of the runtime knows of training."""
