"""What is measured on a network: paths, accuracy, budgets, gates, time."""
