"""Static backbones: their names, their weights, and how images become their input."""
