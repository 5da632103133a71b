"""A converted network in accelerate, with images made up on the spot; some seconds on one core.

python examples/accelerate_loop.py ARCHIVE
torchrun --nproc-per-node 2 examples/accelerate_loop.py ARCHIVE    (on GPUs: accelerate launch)
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dggraph
from dggraph.models.preprocessing import Preprocess
from dggraph.training.optimisers import param_groups

EPOCHS, BATCH, KEPT, THRESHOLD = 4, 16, 0.7, 0.5
COLUMNS = tuple(f"column {number}" for number in range(10))


def draw(number: int) -> TensorDataset:
    """Noise with a bright column: which one says the class."""
    labels, images = torch.randint(10, (number,)), torch.randn(number, 3, 16, 16)
    images[torch.arange(number), :, :, labels] += 3
    return TensorDataset(images, labels)


def main(archive: str) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    set_seed(0)
    net = dggraph.convert("dggraph:resnet14_4", torch.zeros(1, 3, 16, 16), threshold=0).train()
    optimiser = torch.optim.AdamW(param_groups(net, weight_decay=0.05), lr=5e-3)
    model, optimiser, loader = accelerator.prepare(
        net, optimiser, DataLoader(draw(512), BATCH, shuffle=True)
    )
    steps, step = EPOCHS * len(loader), 0
    for _ in range(EPOCHS):
        for images, labels in loader:
            net.set_threshold(
                min(THRESHOLD, 2 * THRESHOLD * step / steps)
            )  # annealed in over the first half
            with accelerator.accumulate(model):
                logits, gates = model(images, return_gates=True)
                loss = F.cross_entropy(logits, labels) + dggraph.losses.budget(gates, KEPT)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
            if step % 10 == 0 or step == steps - 1:
                accelerator.print(
                    f"step {step} loss {loss:.3f} kept {dggraph.losses.kept(gates).mean():.3f}",
                    flush=True,
                )
            step += 1
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model)
        dggraph.save(
            trained.cpu(), archive, preprocess=Preprocess(input_size=(3, 16, 16)), labels=COLUMNS
        )
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
