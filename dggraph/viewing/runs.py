"""The path of an image at a threshold, run once and kept.

One image runs at a time: a network has one threshold, and its executor shares buffers.
"""

import threading
from collections import OrderedDict
from contextlib import nullcontext

import torch

from dggraph.compiler.lowered import routing_of
from dggraph.errors import BusyError
from dggraph.evaluation.recording import Prediction, Predictor
from dggraph.network.gate_contexts import own_thresholds
from dggraph.viewing.gallery import Entry, Gallery

PATIENCE_SECONDS = 60.0
"""How long a request waits for the network."""
MAX_KEPT = 4096
STEPS = 100
"""Thresholds are multiples of 1 / STEPS: a slider has no more, and so few paths are kept."""


class Runs:
    """Predictions and paths of the images of a gallery; threads may share it.

    Args:
        predictor: what runs the images.
        gallery: the images.
    """

    def __init__(self, predictor: Predictor, gallery: Gallery) -> None:
        self.predictor = predictor
        self._gallery = gallery
        self._kept: OrderedDict[tuple[int, int | None], Prediction] = OrderedDict()
        self._lock, self._running = threading.Lock(), threading.Lock()
        net = predictor.net
        self.own_thresholds = tuple(
            float(routing_of(net.lowered, stage).threshold) for stage in net.graph.stages
        )
        """One for each stage; mostly the same."""

    def at(self, entry: Entry, step: int | None) -> Prediction:
        """Return the prediction for an image, and its path.

        Args:
            entry: an image of the gallery.
            step: the threshold in hundredths, 0 to 99; None for the network's own.

        Raises:
            InputError: the image cannot be read.
            BusyError: others have waited for a minute already.
            GateError: an edge weight is NaN.
        """
        key = entry.number, step
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        image = self._gallery.open(entry)
        if not self._running.acquire(timeout=PATIENCE_SECONDS):
            raise BusyError("the network is busy with other images. Try again in a moment.")
        try:
            net = self.predictor.net
            with torch.no_grad(), nullcontext() if step is None else own_thresholds(net):
                if step is not None:
                    net.set_threshold(step / STEPS)
                found = self.predictor.predict(image)
        finally:
            self._running.release()
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found
