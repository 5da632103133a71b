"""Comparisons on `toy_data` that take seconds."""

from pathlib import Path

RECIPE = """
[recipe]
model = "dggraph:resnet14_4"
num_classes = 4
input_size = 16
dataset = "toy_data:make"
epochs = 2
batch_size = 8
warmup_epochs = 0
lr = 0.05
log_interval = 1
threshold = 0.0
checkpoint_steps = 2
"""


def write_comparison(folder: Path, text: str, *, seeds: str = "[0, 1]") -> Path:
    """Write a comparison whose output is below `folder`, and return its file."""
    file = folder / "comparison.toml"
    top = f"output = {str(folder / 'output')!r}\nseeds = {seeds}\n"
    file.write_text(top + text if "[recipe]" in text else top + RECIPE + text)
    return file
