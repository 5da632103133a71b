"""The atlas: its numbers are those of plain recordings, and an interrupted collection ends with the
same bytes.
"""

import json
import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from idx_files import write_idx
from PIL import Image
from toy_atlas import LABELS, build, paint

import dggraph
from dggraph.data.image_sets import open_image_set
from dggraph.errors import GateError, InputError
from dggraph.evaluation import atlas as collecting
from dggraph.evaluation.atlas import Collected, collect_atlas, count_item, observe
from dggraph.evaluation.atlas_counts import AtlasCounts
from dggraph.evaluation.recording import make_predictor
from dggraph.graph.atlas import BINS_PER_STATIC, Atlas
from dggraph.models.preprocessing import Preprocess, open_image, preprocess_image
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork
from dggraph.views.report import Report, make_report


def report_on(net: DynamicNetwork, collected: Collected) -> Report:
    return make_report(net.graph, collected.atlas, collected.thumbnails)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("set") / "photos")


def test_every_number_is_that_of_plain_recordings(photos: Path) -> None:
    net = build()
    net.train()
    net.lowered.head.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    atlas = collect_atlas(net, open_image_set(photos, net.labels), num_instances=5).atlas
    assert modes == {name: module.training for name, module in net.named_modules()}

    files = sorted(photos.glob("*/*.png"))
    recordings = [
        dggraph.record(net, preprocess_image(open_image(file), net.preprocess)) for file in files
    ]
    paths = [recording.paths[0] for recording in recordings]
    (stage,) = net.graph.stages
    patterns = [tuple(weight != 0 for weight in path.weights[stage]) for path in paths]
    number, static = len(files), net.report.total_macs
    assert atlas.num_images == number == 36
    assert atlas.static_macs == static

    assert atlas.frequencies[stage] == tuple(
        sum(pattern[e] for pattern in patterns) / number for e in range(10)
    )
    assert len(set(atlas.frequencies[stage])) > 2, "paths must differ, or this test says little"
    for one in atlas.classes:
        mine = [index for index, file in enumerate(files) if file.parent.name == one.name]
        assert one.frequencies[stage] == tuple(
            sum(patterns[index][e] for index in mine) / 12 for e in range(10)
        )
        assert one.num_images == 12
        assert one.mean_macs == sum(paths[index].macs for index in mine) / 12
        right = [LABELS[int(recordings[index].output.argmax())] == one.name for index in mine]
        assert one.num_correct == sum(right)
    assert atlas.accuracy == sum(one.num_correct or 0 for one in atlas.classes) / number

    macs = [path.macs for path in paths]
    mean = sum(macs) / number
    assert atlas.mean_macs == mean
    assert atlas.std_macs == pytest.approx(math.sqrt(sum((m - mean) ** 2 for m in macs) / number))
    bins = Counter(math.floor(m / static * BINS_PER_STATIC) for m in macs)
    assert dict(atlas.histogram) == bins
    assert sum(count for _, count in atlas.histogram) == number

    counts = Counter(patterns)
    assert atlas.num_paths == len(counts) > 2
    entropy = -sum(count / number * math.log2(count / number) for count in counts.values())
    assert atlas.path_entropy_bits == pytest.approx(entropy)
    for path in atlas.most_common:
        pattern = tuple(weight != 0 for weight in path.path.weights[stage])
        takers = [index for index, one in enumerate(patterns) if one == pattern]
        assert path.count == counts[pattern] == len(takers)
        assert path.examples == tuple(takers[:8])
        assert dict(path.classes) == Counter(files[index].parent.name for index in takers)
        assert all(path.path.macs == paths[index].macs for index in takers)
    assert [path.count for path in atlas.most_common] == sorted(counts.values(), reverse=True)[:12]

    assert atlas.cheapest == tuple(
        sorted(range(number), key=lambda index: (macs[index], index))[:5]
    )
    assert atlas.dearest == tuple(
        sorted(range(number), key=lambda index: (-macs[index], index))[:5]
    )
    places = [one.index for one in atlas.instances]
    assert places == sorted(places)
    assert {*atlas.cheapest, *atlas.dearest} <= set(places)
    for one in atlas.instances:
        assert one.path == paths[one.index]
        assert one.name == f"{files[one.index].parent.name}/{files[one.index].name}"
        assert one.label == files[one.index].parent.name
        assert one.prediction == LABELS[int(recordings[one.index].output.argmax())]

    live = Counter(node for path in paths for node in path.live_nodes(net.graph))
    assert atlas.gates.live_fractions == {
        node.name: live[node.name] / number for node in net.graph.nodes(stage)[1:-1]
    }


def test_hand_computed(tmp_path: Path) -> None:
    """Two of three images take v0 -> v3 -> out, and one the chain; weights are ours."""
    write_idx(tmp_path, "t10k", [0, 1, 1], 3)
    net = build()
    net.preprocess = Preprocess(input_size=(3, 16, 16))
    images = open_image_set(tmp_path, LABELS[:2])
    edges = [(edge.source, edge.target) for edge in net.graph.edges("blocks")]
    v0, v1, v2, v3, out = (node.name for node in net.graph.nodes("blocks"))
    counts = AtlasCounts(net.graph, net.macs_table.static, images.classes, is_comparable=False)
    for item, opened in zip(
        images.items(),
        ([(v0, v3), (v3, out)], [(v0, v1), (v1, v2), (v2, v3), (v3, out)], [(v0, v3), (v3, out)]),
        strict=True,
    ):
        weights = torch.tensor([1.0 if edge in opened else 0.0 for edge in edges])
        with pinned_gates(net, {"blocks": weights}):
            counts.is_wanted = True
            count_item(item, observe(make_predictor(net), item, images.classes, "error"), counts)
    atlas = counts.atlas(network="n", images="i", num_ignored=0)
    shares = {edge: atlas.frequencies["blocks"][place] for place, edge in enumerate(edges)}
    assert shares == dict.fromkeys(edges, 0.0) | {(v0, v3): 2 / 3, (v3, out): 1.0} | dict.fromkeys(
        ((v0, v1), (v1, v2), (v2, v3)), 1 / 3
    )
    first, second = atlas.classes
    assert (first.name, second.name, first.num_images, second.num_images) == ("apple", "bee", 1, 2)
    assert first.frequencies["blocks"][edges.index((v0, v3))] == 1
    assert second.frequencies["blocks"][edges.index((v0, v3))] == 0.5
    assert atlas.num_paths == 2
    assert atlas.path_entropy_bits == pytest.approx(math.log2(3) - 2 / 3)
    assert [(path.count, path.examples, path.classes) for path in atlas.most_common] == [
        (2, (0, 2), (("apple", 1), ("bee", 1))),
        (1, (1,), (("bee", 1),)),
    ]
    block = net.graph.nodes("blocks")[1].macs
    short, long = (path.path.macs for path in atlas.most_common)
    assert 2 * block <= long - short < 2.1 * block
    assert [one.path.macs for one in atlas.instances] == [short, long, short]
    assert atlas.accuracy is None
    assert atlas.gates.never_live == ()


def interrupt_at(number: int) -> Any:
    def progress(done: int, _total: int) -> None:
        if done == number:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("at", [1, 13, 35])
def test_an_interrupted_run_ends_with_the_same_bytes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    net, images = build(), open_image_set(photos, LABELS)
    whole = report_on(net, collect_atlas(net, images))
    monkeypatch.setattr(collecting, "SAVE_SECONDS", 0.0)
    state = tmp_path / "x.state"
    for stop in (at, min(at + 9, 36)):
        with pytest.raises(KeyboardInterrupt):
            collect_atlas(net, images, state=state, progress=interrupt_at(stop))
    done: list[int] = []
    again = report_on(
        build(),
        collect_atlas(build(), images, state=state, progress=lambda number, _: done.append(number)),
    )
    assert again == whole
    assert again.html.encode() == whole.html.encode()
    assert done[0] == min(at + 9, 36), "images that were counted are not run again"


KILLED = """
import os, signal, sys
from pathlib import Path
from toy_atlas import LABELS, build
from dggraph.evaluation import atlas
from dggraph.data.image_sets import open_image_set

def progress(done, total):
    if done == 20:
        os.kill(os.getpid(), signal.SIGKILL)

atlas.SAVE_SECONDS = 0.0
images, state = open_image_set(sys.argv[1], LABELS), Path(sys.argv[2])
atlas.collect_atlas(build(), images, state=state, progress=progress)
"""


def test_a_killed_run_ends_with_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    state = tmp_path / "x.state"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(photos), str(state)],
        cwd=Path(__file__).parents[1] / "helpers",
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    net, images = build(), open_image_set(photos, LABELS)
    counted: list[int] = []
    resumed = collect_atlas(
        net, images, state=state, progress=lambda number, _: counted.append(number)
    )
    assert counted[0] == 20
    assert report_on(net, resumed) == report_on(net, collect_atlas(net, images))


def test_a_state_of_something_else_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images = build(), open_image_set(photos, LABELS)
    state = tmp_path / "x.state"
    collect_atlas(net, images, state=state)
    with pytest.raises(InputError, match=r"x\.state.*other limit"):
        collect_atlas(net, images, limit=5, state=state)
    with pytest.raises(InputError, match="other network"):
        collect_atlas(build(seed=4), images, state=state)
    moved = build()
    moved.set_threshold(0.4)
    with pytest.raises(InputError, match="other network"):
        collect_atlas(moved, images, state=state)
    with pytest.raises(InputError, match="other images"):
        collect_atlas(net, open_image_set(paint(tmp_path / "more", 3), LABELS), state=state)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        collect_atlas(net, images, state=state)


def test_images_that_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    net = build()
    broken = {"apple/03.png": b"", "bee/00.png": b"no image", "elk/11.png": None}
    paint(tmp_path / "set")
    for name, content in broken.items():
        whole = (tmp_path / "set" / name).read_bytes()
        (tmp_path / "set" / name).write_bytes(
            whole[: len(whole) // 2] if content is None else content
        )
    images = open_image_set(tmp_path / "set", LABELS)
    state = tmp_path / "x.state"
    with pytest.raises(InputError, match=r"apple/03\.png.*--on-bad-image skip"):
        collect_atlas(net, images, state=state)
    counted: list[int] = []
    atlas = collect_atlas(
        net, images, on_bad_image="skip", state=state, progress=lambda done, _: counted.append(done)
    ).atlas
    assert counted[0] == 4, "what was counted before the error is not run again"
    assert atlas.num_images == 33
    assert atlas.num_skipped == 3
    assert [name for name, _ in atlas.skipped] == sorted(broken)
    assert all(name in reason for name, reason in atlas.skipped)
    assert [one.num_images for one in atlas.classes] == [11, 11, 11]
    assert atlas == collect_atlas(net, images, on_bad_image="skip").atlas
    for file in (tmp_path / "set").glob("*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="36 were skipped"):
        collect_atlas(net, open_image_set(tmp_path / "set", LABELS), on_bad_image="skip")


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    paint(tmp_path / "set")
    (tmp_path / "set" / "bee").rename(tmp_path / "set" / "b\udce9e")
    (tmp_path / "set" / "apple" / "03.png").rename(tmp_path / "set" / "apple" / "\udcff.png")
    net = build()
    collected = collect_atlas(
        net, open_image_set(tmp_path / "set", LABELS), limit=12, state=tmp_path / "x.state"
    )
    report = make_report(net.graph, collected.atlas, collected.thumbnails)
    assert json.loads(report.json)["classes"][1]["name"] == "b\udce9e"
    assert "b\N{REPLACEMENT CHARACTER}e" in report.html
    report.html.encode()


def test_a_weight_that_is_no_number_names_the_image(photos: Path) -> None:
    net = build()
    with torch.no_grad():
        next(net.lowered.get_submodule("dg_blocks").parameters()).fill_(math.nan)
    with pytest.raises(GateError, match=r"'apple/00\.png'"):
        collect_atlas(net, open_image_set(photos, LABELS))


def test_what_is_held_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Four times as many images of the same 50 contents: nothing but longer numbers."""
    net = build()
    sizes = []
    for number in (100, 400):
        write_idx(tmp_path / str(number), "t10k", [index % 5 for index in range(number)], number)
        images = open_image_set(tmp_path / str(number), LABELS)
        counts = AtlasCounts(net.graph, net.macs_table.static, images.classes, is_comparable=True)
        for item in images.items():
            again = item.__class__(
                item.index, item.name, item.label, lambda place=item.index: grey(place % 50)
            )  # type: ignore[misc]
            count_item(again, observe(make_predictor(net), again, images.classes, "error"), counts)
        sizes.append(len(json.dumps(counts.document())))
    assert sizes[1] < 1.15 * sizes[0]


def grey(place: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (5 * place, 250 - 5 * place, (37 * place) % 255))


def test_a_limit_and_classes_that_are_not_the_network_s(photos: Path) -> None:
    net = build()
    net.labels = ("v", "w", "x", "y", "z")
    atlas: Atlas = collect_atlas(
        net, open_image_set(photos, net.labels), limit=9, num_instances=9
    ).atlas
    assert atlas.num_images == 9
    assert atlas.accuracy is None
    assert [one.num_correct for one in atlas.classes] == [None] * 3
    assert [one.label for one in atlas.instances] == ["apple"] * 3 + ["bee"] * 3 + ["elk"] * 3
    net.preprocess = None
    with pytest.raises(InputError, match="--input-size"):
        collect_atlas(net, open_image_set(photos))


def test_recordings_and_the_atlas_share_thumbnails(photos: Path) -> None:
    net = build()
    collected = collect_atlas(net, open_image_set(photos, LABELS), num_instances=4)
    wanted = {one.index for one in collected.atlas.instances} | {
        i for path in collected.atlas.most_common for i in path.examples
    }
    assert set(collected.thumbnails) == wanted
    files = sorted(photos.glob("*/*.png"))
    for index, image in collected.thumbnails.items():
        assert image.tobytes() == open_image(files[index]).tobytes()
