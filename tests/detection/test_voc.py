"""VOC's folders as they are found in the wild: every image is there or named, none is dropped."""

from pathlib import Path

import pytest
from PIL import Image

from dggraph.detection.box_data import open_boxes
from dggraph.detection.box_sets import BoxSet
from dggraph.detection.voc import FLAGGED, HIDDEN_XML, OTHER_SUFFIX
from dggraph.errors import InputError
from dggraph.training.config import TrainConfig

STEMS = ("a", "b", "c", "d")


def voc(
    root: Path,
    stems: tuple[str, ...] = STEMS,
    *,
    stored: str = "{}.png",
    named: str = "{}.png",
    listed: str = "{}\n",
) -> Path:
    """The first half trains, the second validates."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (64, 48)).save(root / "JPEGImages" / "new.png")
        (root / "JPEGImages" / "new.png").rename(root / "JPEGImages" / stored.format(stem))
        name = f"<filename>{named.format(stem)}</filename>" if named else ""
        box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>35</ymax></bndbox>"
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation>{name}<size><width>64</width><height>48</height></size><object><name>thing</name>{box}</object></annotation>",
            encoding="utf-8",
        )
    for part, some in (("train", stems[:2]), ("val", stems[2:])):
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(
            "".join(listed.format(stem) for stem in some), encoding="utf-8"
        )
    return root


def read(root: Path, on_bad: str = "error") -> BoxSet:
    config = TrainConfig(
        model="resnet18", task="detection", dataset="voc", data_dir=root, on_bad_box=on_bad
    )  # type: ignore[arg-type]
    found, judged = open_boxes(config.source)
    assert len(judged.images) == 2 or on_bad == "skip"
    return found


def names(found: BoxSet) -> list[str]:
    return [image.name for image in found.images]


@pytest.mark.parametrize(
    "stems",
    [
        ("my photo (1)", "my photo (2)", "x", "y"),
        ("a 1", "a -1", "b 0", "c"),
        ("1", "é", "ü ", "-1"),
    ],
)
def test_names_with_spaces_and_numbers(tmp_path: Path, stems: tuple[str, ...]) -> None:
    stems = tuple(stem.strip() for stem in stems)
    assert names(read(voc(tmp_path, stems))) == [f"{stem}.png" for stem in stems[:2]]


@pytest.mark.parametrize("listed", ["{} 1\n", "{}  -1\n", "{}\t0\r\n"])
def test_flags_of_lists_are_read_over_and_counted(tmp_path: Path, listed: str) -> None:
    found = read(voc(tmp_path, listed=listed))
    assert names(found) == ["a.png", "b.png"]
    assert found.counts == {FLAGGED: 2}
    assert "2 listed names with a flag" in found.notes[0]


@pytest.mark.parametrize(
    "listed",
    [
        "{}.png\n",
        "JPEGImages/{}.png\n",
        "JPEGImages\\{}.jpg\r\n",
        "{}.xml\n\n",
        " {} \n",
        "/data/voc/{}\n",
    ],
)
def test_lists_with_folders_suffixes_and_blanks(tmp_path: Path, listed: str) -> None:
    assert names(read(voc(tmp_path, listed=listed))) == ["a.png", "b.png"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_with_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    voc(tmp_path, ("é", "b", "c", "d"))
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("e\u0301\r\nb\r\n".encode(encoding))
    assert names(read(tmp_path)) == ["é.png", "b.png"]
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match=r"train\.txt.*UTF-8"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("stored", "named", "is_counted"),
    [
        ("IMG_{}.png", "IMG_{}.png", False),
        ("{}.png", "", False),
        ("{}.png", "{}", True),
        ("{}.png", "{}.jpg", True),
        ("{}.JPG", "{}.jpg", True),
        ("IMG_{}.png", "img_{}.PNG", True),
        ("IMG_{}.png", "C:\\photos\\IMG_{}.png", True),
    ],
)
def test_an_image_is_found_by_its_filename(
    tmp_path: Path, stored: str, named: str, is_counted: bool
) -> None:
    found = read(voc(tmp_path, stored=stored, named=named))
    assert names(found) == [stored.format("a"), stored.format("b")]
    assert [len(image.boxes) for image in found.images] == [1, 1]
    assert found.counts == ({OTHER_SUFFIX: 2} if is_counted else {})


def test_names_that_lead_to_several_images_or_none_are_bad(tmp_path: Path) -> None:
    voc(tmp_path)
    xml = tmp_path / "Annotations" / "a.xml"
    text = xml.read_text()
    for name, what in (
        ("b.png", r"unclear which image.*a\.png, b\.png"),
        ("x.png", r"there is no image 'x\.png'.*there is 'a\.png'"),
    ):
        xml.write_text(text.replace("a.png", name))
        with pytest.raises(InputError, match=what):
            read(tmp_path)
        found = read(tmp_path, "skip")
        assert names(found) == ["b.png"]
        assert "a.xml" in found.skipped[0]
    xml.write_text(text.replace("a.png", "a"))
    Image.new("RGB", (64, 48)).save(tmp_path / "JPEGImages" / "a.jpg")
    with pytest.raises(InputError, match=r"unclear which image.*a\.jpg, a\.png"):
        read(tmp_path)


def test_two_xml_files_of_one_image_and_names_listed_twice(tmp_path: Path) -> None:
    voc(tmp_path, stored="{}.png")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\na\n")
    with pytest.raises(
        InputError,
        match=r"a\.xml belongs to 'a\.png', as another XML file does, or is listed twice",
    ):
        read(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\nnone\n")
    with pytest.raises(InputError, match=r"train\.txt lists 'none', which has no annotations"):
        read(tmp_path)
    assert len(read(tmp_path, "skip").skipped) == 1


def test_hidden_xml_files_and_suffixes_in_capitals(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "Annotations" / "._a.xml").write_bytes(b"\0\5\x16\7")
    (tmp_path / "Annotations" / "a.xml").rename(tmp_path / "Annotations" / "a.XML")
    found = read(tmp_path)
    assert names(found) == ["a.png", "b.png"]
    assert found.counts == {HIDDEN_XML: 1}


@pytest.mark.parametrize("value", ["2", "maybe"])
def test_difficult_is_0_or_1(tmp_path: Path, value: str) -> None:
    voc(tmp_path)
    xml = tmp_path / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("<bndbox>", f"<difficult>{value}</difficult><bndbox>"))
    with pytest.raises(InputError, match=rf"a\.xml: object 0 has <difficult> '{value}'"):
        read(tmp_path)
