"""Files, locks, processes, loaders: what the operating system and torch.distributed are asked
for.
"""
