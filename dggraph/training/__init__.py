"""Training: losses first. Every module here may use the runtime; nothing of the runtime knows of training."""

from dggraph.training import losses as losses
