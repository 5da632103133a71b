"""Many methods by one recipe: a queue of training runs, their rows, and what they say together."""
