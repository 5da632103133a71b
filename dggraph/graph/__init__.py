"""What may connect and what did: nodes, candidate edges, wirings, paths. No torch."""
