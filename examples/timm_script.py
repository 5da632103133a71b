"""Train a converted network in the manner of timm's train.py: its loader, mixup, optimiser,
schedule, average and loss scaler.

    python examples/timm_script.py DATA ARCHIVE --model regnety_008

DATA holds train/CLASS/... and val/CLASS/...

Lines marked `# dggraph` are what a user of timm's script changes or adds.
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from timm import create_model
from timm.data import Mixup, create_dataset, create_loader, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, NativeScaler, accuracy

import dggraph
from dggraph.models.preprocessing import Preprocess
from dggraph.training.optimisers import param_groups


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir")
    parser.add_argument("archive")
    parser.add_argument("--model", default="regnety_008")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup-epochs", type=int, default=5)
    parser.add_argument("--mixup", type=float, default=0.2)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--clip-grad", type=float, default=1.0)
    parser.add_argument("--ema-decay", type=float, default=0.9998)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--budget", type=float, default=0.8, help="mean MACs to keep")  # dggraph
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="at the end of its warm-up, half of the run"
    )  # dggraph
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    datasets = {
        split: create_dataset("", root=args.data_dir, split=split, is_training=split == "train")
        for split in ("train", "val")
    }
    classes = sorted(datasets["train"].reader.class_to_idx)

    model = create_model(args.model, pretrained=args.pretrained, num_classes=len(classes))
    data_config = resolve_data_config(vars(args), model=model)
    model = dggraph.convert(
        model, torch.zeros(1, *data_config["input_size"]), threshold=0
    )  # dggraph
    model.to(device)
    optimizer = create_optimizer_v2(
        param_groups(model, args.weight_decay), opt="adamw", lr=args.lr
    )  # dggraph: groups
    loss_scaler = NativeScaler(device.type) if device.type == "cuda" else None
    ema = ModelEmaV3(model, decay=args.ema_decay)

    names = ("input_size", "mean", "std", "interpolation", "crop_pct")
    shared = {name: data_config[name] for name in names} | {
        "num_workers": args.workers,
        "use_prefetcher": False,
    }
    loader_train = create_loader(
        datasets["train"], batch_size=args.batch_size, is_training=True, color_jitter=0.0, **shared
    )
    loader_val = create_loader(datasets["val"], batch_size=args.batch_size, **shared)
    mixup = Mixup(mixup_alpha=args.mixup, label_smoothing=args.smoothing, num_classes=len(classes))
    scheduler, num_epochs = create_scheduler_v2(
        optimizer,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=1e-6,
        step_on_epochs=False,
        updates_per_epoch=len(loader_train),
    )

    num_updates, total = 0, num_epochs * len(loader_train)
    for epoch in range(num_epochs):
        model.train()
        losses, kept = AverageMeter(), AverageMeter()
        for input, target in loader_train:
            input, target = mixup(input.to(device), target.to(device))
            threshold = min(args.threshold, 2 * args.threshold * num_updates / total)  # dggraph
            model.set_threshold(threshold)  # dggraph
            with torch.autocast(device.type) if loss_scaler else nullcontext():
                output, gates = model(input, return_gates=True)  # dggraph: gates
                loss = SoftTargetCrossEntropy()(output, target)
            loss = loss + dggraph.losses.budget(gates, args.budget)  # dggraph
            optimizer.zero_grad()
            if loss_scaler:
                loss_scaler(
                    loss, optimizer, clip_grad=args.clip_grad, parameters=model.parameters()
                )
            else:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
                optimizer.step()
            num_updates += 1
            ema.update(model, step=num_updates)
            ema.module.set_threshold(
                threshold
            )  # dggraph: set, not learned, so an average would lag behind
            scheduler.step_update(num_updates)
            losses.update(loss.item(), len(input))
            kept.update(dggraph.losses.kept(gates).mean().item(), len(input))  # dggraph
        top1 = validate(ema.module, loader_val, device)
        print(
            f"epoch {epoch} loss {losses.avg:.3f} kept {kept.avg:.3f} top1 {top1:.1f}", flush=True
        )
        scheduler.step(epoch + 1)
    preprocess = Preprocess(  # dggraph
        input_size=tuple(data_config["input_size"]),
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        interpolation=data_config["interpolation"],
        crop_fraction=data_config["crop_pct"],
    )
    dggraph.save(ema.module.cpu(), args.archive, preprocess=preprocess, labels=classes)  # dggraph


def validate(
    model: torch.nn.Module, loader: torch.utils.data.DataLoader, device: torch.device
) -> float:
    model.eval()
    top1 = AverageMeter()
    with torch.inference_mode():
        for input, target in loader:
            (percent,) = accuracy(model(input.to(device)), target.to(device), topk=(1,))
            top1.update(percent.item(), len(input))
    return top1.avg


if __name__ == "__main__":
    main()
