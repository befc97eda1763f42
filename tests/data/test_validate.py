"""F01-F20, F31, F84: what bad annotation files get."""

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdetr import files
from msdetr.data import AnnotationError, CocoDetection, DataWarning, read_annotations


@pytest.fixture
def read(tmp_path):
    def read(content, on_bad="error"):
        file = tmp_path / "instances.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_annotations(file, on_bad)

    return read


@pytest.fixture
def rejected(read):
    """The content is an error whatever ``on_bad`` says, and the message names the file and all these words."""

    def rejected(content, *words):
        for on_bad in ("error", "drop"):
            with pytest.raises(AnnotationError) as error:
                read(content, on_bad)
            for word in ("instances.json", *words):
                assert str(word) in str(error.value)

    return rejected


@pytest.fixture
def dropped(read):
    """The annotation is an error naming these words; with ``on_bad="drop"`` it alone is left out, and counted."""

    def dropped(content, *words):
        with pytest.raises(AnnotationError) as error:
            read(content)
        for word in ("instances.json", "on_bad='drop'", *words):
            assert str(word) in str(error.value)
        annotations, report = read(content, "drop")
        assert len(annotations.ids) == len(content["annotations"]) - 1
        (note,) = report.notes
        assert note.count == 1 and "dropped" in str(report)

    return dropped


def counted(report, words, ids):
    (note,) = report.notes
    assert words in note.kind and note.ids == tuple(ids)


def test_a_clean_file_is_sorted_and_complete(read, content):
    annotations, report = read(content)
    assert not report and "nothing to report" in str(report)
    assert annotations.image_ids.tolist() == [3, 7, 9]
    assert annotations.file_names == ["b.png", "a.png", "empty.png"]
    assert annotations.sizes.tolist() == [[20, 20], [30, 40], [12, 16]]
    assert annotations.category_ids.tolist() == [1, 5, 90]
    assert annotations.category_names == ["person", "airplane", "toothbrush"]
    assert annotations.ids.tolist() == [13, 14, 11, 12]
    assert annotations.image.tolist() == [0, 0, 1, 1]
    assert annotations.category.tolist() == [1, 0, 1, 2]
    assert annotations.boxes[2].tolist() == [1, 2, 10, 12.5]
    assert annotations.crowd.tolist() == [True, False, False, False]


@pytest.mark.fault("F01")
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_json(rejected, content, keep):
    text = json.dumps(content)
    rejected(text[: int(len(text) * keep)], "not valid JSON", "offset")


@pytest.mark.fault("F01")
@pytest.mark.parametrize("text", ["[]", "3", "null", '"images"'])
def test_not_an_object(rejected, text):
    rejected(text, "not an object", "offset 0")


@pytest.mark.fault("F01")
@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 10_000, "", "\ufeff{}"])
def test_json_that_upsets_the_parser(rejected, text):
    rejected(text)


@pytest.mark.fault("F02")
@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", ["absent", None, {}, "x"])
def test_missing_section(rejected, content, section, value):
    content[section] = value
    if value == "absent":
        del content[section]
    rejected(content, f"'{section}'")


@pytest.mark.fault("F03")
@pytest.mark.parametrize("field", ["bbox", "category_id", "image_id", "id"])
def test_missing_field(dropped, content, field):
    del content["annotations"][1][field]
    dropped(content, field, "missing", "annotations[1]" if field == "id" else "annotation 12")


@pytest.mark.fault("F04")
def test_missing_area_and_iscrowd(read, content):
    del content["annotations"][0]["area"], content["annotations"][0]["iscrowd"]
    annotations, report = read(content)
    assert annotations.areas[annotations.ids == 11] == 10 * 12.5
    assert not annotations.crowd[annotations.ids == 11]
    counted(report, "area computed", [11])


@pytest.mark.fault("F05")
def test_duplicate_image_id(rejected, content):
    content["images"][1]["id"] = 7
    rejected(content, "image id used twice: 7")


@pytest.mark.fault("F06")
def test_duplicate_annotation_id(dropped, content):
    content["annotations"][1]["id"] = 11
    dropped(content, "id used twice", "annotation 11 (image 7)")


@pytest.mark.fault("F07")
def test_duplicate_category(rejected, read, content):
    content["categories"][2]["name"] = "person"
    counted(read(content)[1], "category name used twice", ["person"])
    content["categories"][2]["id"] = 1
    rejected(content, "category id used twice: 1")


@pytest.mark.fault("F08")
@pytest.mark.parametrize("unfit", [0, -4, 2**60])
def test_annotation_ids_that_pycocotools_misreads(folder, content, unfit):
    from pycocotools.cocoeval import COCOeval

    content["annotations"][0]["id"] = unfit
    with pytest.warns(DataWarning, match="re-indexed"):
        dataset = CocoDetection(*folder(content))
    truth = dataset.coco_api()
    assert sorted(truth.anns) == [1, 2, 3, 4]
    perfect = [{**annotation, "score": 1.0} for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    evaluation = COCOeval(truth, truth.loadRes(perfect), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.fault("F09")
def test_unknown_image(dropped, content):
    content["annotations"][2]["image_id"] = 1234
    dropped(content, "annotation 13", "1234", "image_id")


@pytest.mark.fault("F10")
def test_unknown_category(dropped, content):
    content["annotations"][2]["category_id"] = 2
    dropped(content, "annotation 13 (image 3): 2", "category_id")


@pytest.mark.fault("F12")
@pytest.mark.parametrize("value", [1.0, True, "11", None, 10**30, [1]])
def test_ids_that_are_no_whole_numbers(dropped, rejected, content, value):
    for field in ("id", "image_id", "category_id"):
        spoilt = copy.deepcopy(content)
        spoilt["annotations"][1][field] = value
        dropped(spoilt, field)
    for section in ("images", "categories"):
        spoilt = copy.deepcopy(content)
        spoilt[section][1]["id"] = value
        rejected(spoilt, f"{section}[1]")


@pytest.mark.fault("F13")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", range(4))
def test_not_finite(dropped, content, value, place):
    content["annotations"][0]["bbox"][place] = value
    dropped(content, "annotation 11", "NaN or infinite")


@pytest.mark.fault("F14")
@pytest.mark.parametrize("size", [[0, 5], [5, 0], [-3, 5], [5, -1e-3]])
def test_empty_boxes_are_left_out(read, content, size):
    content["annotations"][0]["bbox"][2:] = size
    annotations, report = read(content)
    assert 11 not in annotations.ids
    counted(report, "zero or negative size left out", [11])


@pytest.mark.fault("F15")
@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ([-5, 2, 10, 5], [0, 2, 5, 5]),
        ([35, 25, 10, 10], [35, 25, 5, 5]),
        ([-5, -5, 100, 100], [0, 0, 40, 30]),
        ([40, 5, 5, 5], None),
        ([-9, 5, 5, 5], None),
        ([5, 30, 5, 5], None),
    ],
)
def test_boxes_beyond_the_border(read, content, box, clipped):
    content["annotations"][0]["bbox"] = box
    annotations, report = read(content)
    if clipped is None:
        assert 11 not in annotations.ids
        counted(report, "outside the image left out", [11])
    else:
        assert annotations.boxes[annotations.ids == 11].tolist() == [clipped]
        counted(report, "clipped", [11])


@pytest.mark.fault("F15")
def test_rounding_at_the_border_is_not_reported(read, content):
    content["annotations"][0]["bbox"] = [30, 10, 10.01, 20.005]
    assert not read(content)[1]


@pytest.mark.fault("F16")
@pytest.mark.parametrize(
    "box", [[], [1, 2, 3], [1, 2, 3, 4, 5], "1234", None, {}, [1, 2, "3", 4], [[1, 2], [3, 4]], [True] * 4]
)
def test_not_four_numbers(dropped, content, box):
    content["annotations"][0]["bbox"] = box
    dropped(content, "annotation 11", "four numbers")


@pytest.mark.fault("F20")
@pytest.mark.parametrize("section", ["images", "categories"])
def test_nothing_to_train_on(rejected, content, section):
    content[section] = []
    rejected(content, f"'{section}' is empty")


@pytest.mark.fault("F31")
@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "x/../../a.png",
        "/etc/passwd",
        "..",
        "..\\a.png",
        "C:\\a.png",
        "C:a.png",
        "",
        "a\0.png",
        3,
        None,
    ],
)
def test_paths_that_leave_the_folder(rejected, content, name):
    content["images"][1]["file_name"] = name
    rejected(content, "image 3", "file_name")


@pytest.mark.fault("F31")
@pytest.mark.parametrize(
    "name", ["a.png", "part 1/ä.png", "...", "a..b.png", "./c.png", "12:30:05.png", "day 1: noon/é.png"]
)
def test_paths_that_stay(read, content, name):
    content["images"][1]["file_name"] = name
    assert read(content)[0].file_names[0] == name


def test_a_name_that_is_no_text(rejected, content):
    content["images"][1]["file_name"] = "caf\udce9.png"
    rejected(content, "image 3", "which is no text in UTF-8; rename the image file")


@pytest.mark.parametrize("value", [0, -1, 2.5, "20", None, True, float("nan"), 1e12])
def test_image_sizes(rejected, content, value):
    content["images"][1]["width"] = value
    rejected(content, "image 3: width")


@pytest.mark.fault("F84")
def test_no_info_key_is_needed(folder, content):
    assert "info" not in content
    api = CocoDetection(*folder(content)).coco_api()
    api.info()
    assert len(api.loadRes([{"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}]).anns) == 1


def test_many_bad_annotations_are_summed_up(read, content):
    content["annotations"] = [{"id": i, "image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]} for i in range(1, 41)]
    with pytest.raises(AnnotationError, match="and 35 more"):
        read(content)
    assert read(content, "drop")[1].notes[0].count == 40


# --- whatever the JSON, it loads or raises AnnotationError ---------------------------------------------------------

VALID = Path(__file__).parent / "valid.json"

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 7, 11, 2**63, 10**400, 1e308])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "\ud800", "a\0", "a.png"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt_contents(draw):
    """The valid content with one to four places deleted, doubled or overwritten with junk."""
    content = json.loads(VALID.read_text())
    for _ in range(draw(st.integers(1, 4))):
        container = content
        while True:
            places = list(container) if isinstance(container, dict) else list(range(len(container)))
            if not places:
                break
            place = draw(st.sampled_from(places))
            if isinstance(container[place], (dict, list)) and container[place] and draw(st.integers(0, 4)):
                container = container[place]
                continue
            action = draw(st.sampled_from(["junk", "junk", "delete", "double"]))
            if action == "junk":
                container[place] = draw(JUNK)
            elif action == "delete":
                del container[place]
            elif isinstance(container, list):
                container.append(container[place])
            break
    return content


def outcome(file, on_bad):
    """What reading a file gives, as text."""
    try:
        annotations, report = read_annotations(file, on_bad)
        return f"{annotations.to_coco()} {report}"
    except AnnotationError as error:
        return str(error)


@pytest.mark.parametrize("on_bad", ["error", "drop"])
@given(
    content=spoilt_contents(),
    piece=st.sampled_from([1, 2, 7, 64]),
    indent=st.sampled_from([None, 1]),
    cut=st.booleans(),
)
def test_a_file_read_in_pieces_is_the_file_read_at_once(on_bad, content, piece, indent, cut):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "instances.json"
        text = json.dumps(content, indent=indent, ensure_ascii=piece > 1).encode(errors="surrogatepass")
        file.write_bytes(text[: len(text) // 2] if cut and piece == 7 else text)
        patch.setattr(files, "_PIECE", piece)
        in_pieces = outcome(file, on_bad)
        patch.setattr(files, "stream_json", lambda *_: None)
        assert outcome(file, on_bad) == in_pieces


def test_outlines_are_not_kept(read, content, monkeypatch):
    """A file without faults is read in pieces, and nothing of it is parsed a second time."""
    content["annotations"][0]["segmentation"] = [[1.5] * 1000]
    monkeypatch.setattr(files, "parse_json", None)
    annotations, _ = read(content)
    assert len(annotations.ids) == len(content["annotations"])
    for text in ("[]", "{}]", '{"a": 1, "a": 2}', '{"a" 1}', '{"a": }', '{"a": 1,}', '{"a": 1'):
        with pytest.raises(TypeError):  # what is no such object is left to the parser of whole files
            read(text)


@pytest.mark.parametrize("on_bad", ["error", "drop"])
@given(content=spoilt_contents())
def test_fuzz(on_bad, content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances.json"
        file.write_text(json.dumps(content))
        try:
            annotations, _ = read_annotations(file, on_bad)
        except AnnotationError as error:
            assert "instances.json" in str(error)
            return
    limits = annotations.sizes[annotations.image][:, ::-1]
    assert np.isfinite(annotations.boxes).all() and (annotations.boxes[:, 2:] > 0).all()
    assert (annotations.boxes[:, :2] >= -0.021).all()
    assert (annotations.boxes[:, :2] + annotations.boxes[:, 2:] <= limits + 0.021).all()
    assert (annotations.areas >= 0).all() and len(set(annotations.ids.tolist())) == len(annotations.ids)
    assert (np.diff(annotations.image) >= 0).all() and (annotations.ids > 0).all()
    annotations.to_coco()
