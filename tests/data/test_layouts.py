"""One's own folder as it is: COCO, YOLO and Pascal VOC give the same images and objects, and every fault is named."""

import dataclasses
import re
import shutil

import numpy as np
import own
import pytest

import msdetr
from msdetr.data import build_datasets, check
from msdetr.data.layouts import find_layout, open_layout
from msdetr.data.parts import held_out, usual_split
from msdetr.data.settings import fitting_settings, part
from msdetr.errors import AnnotationError, ConfigError, DataError, ImageError

NAMES = ["ant", "bee", "cat"]  # by name, as Pascal VOC numbers them
SPLITS = {"train": own.objects(6, 3, seed=1), "val": own.objects(3, 3, seed=2), "test": own.objects(2, 3, seed=3)}
TITLES = {"coco": "COCO", "ultralytics": "YOLO", "roboflow": "YOLO", "voc": "Pascal VOC"}


@pytest.fixture
def config():
    def of(root, **changes):
        settings = {
            "data.root": str(root),
            "train.batch_size": 2,
            **{k.replace("__", "."): v for k, v in changes.items()},
        }
        return msdetr.resolve("photos/ms-detr-c", settings)

    return of


@pytest.fixture
def yolo(tmp_path):
    return own.yolo(tmp_path / "own", NAMES, SPLITS)


@pytest.fixture
def voc(tmp_path):
    return own.voc(tmp_path / "own", NAMES, SPLITS)


@pytest.mark.parametrize("layout", own.WRITERS)
def test_every_layout_gives_the_same_images_and_objects(layout, tmp_path, config):
    root = own.WRITERS[layout](tmp_path / "own", NAMES, SPLITS)
    before = sorted(root.rglob("*"))
    train_set, val_set = build_datasets(config(root))
    assert open_layout(root).title == TITLES[layout]
    assert train_set.class_names == val_set.class_names == NAMES
    assert (len(train_set), len(val_set)) == (6, 3) and (train_set.part.split, val_set.part.split) == ("train", "val")
    for dataset, content in ((train_set, SPLITS["train"]), (val_set, SPLITS["val"])):
        table = dataset.annotations
        found = {}
        for row in range(len(table.ids)):
            stem = re.sub(r"^.*(photo \d+).png$", r"\1", table.file_names[table.image[row]])
            found.setdefault(stem, []).append((int(table.category[row]), tuple(np.round(table.boxes[row], 4).tolist())))
        assert found == {stem: [(c, tuple(map(float, box))) for c, box in rows] for stem, rows in content.items()}
        assert val_set[0].image.shape[0] == 3
    assert sorted(root.rglob("*")) == before, "nothing is written into a person's folder"
    text = str(check(root))
    assert f"{TITLES[layout]} layout" in text and "ready to train on" in text
    assert "trained on: train; validated on: val" in text and text.count("6, 0 of them without objects") == 1
    assert text.endswith(f"msdetr train photos/ms-detr-c --data {root}")


@pytest.mark.parametrize("layout", own.WRITERS)
def test_without_a_validation_split_the_same_images_are_held_out(layout, tmp_path, config):
    root = own.WRITERS[layout](tmp_path / "own", NAMES, {"train": own.objects(20, 3), "test": own.objects(3, 3)})
    train_set, val_set = build_datasets(config(root))
    names = [set(dataset.annotations.file_names) for dataset in (train_set, val_set)]
    assert (len(train_set), len(val_set)) == (16, 4) and not names[0] & names[1], "a test split does not validate"
    assert len(train_set.annotations.ids) + len(val_set.annotations.ids) == sum(map(len, own.objects(20, 3).values()))
    assert train_set.class_names == val_set.class_names == NAMES
    other = build_datasets(config(root, seed=7))[1]
    assert other.annotations.file_names == val_set.annotations.file_names, "whatever the seed"
    assert "validated on: the images held out of train" in str(check(root))
    assert part(config(root).data, "val").digest() != part(config(root).data, "train").digest()


def test_an_image_that_is_added_moves_few_others():
    names = [f"{i}.jpg" for i in range(100)]
    first = {name for name, out in zip(names, held_out(names)) if out}
    more = [*names, "new.jpg"]
    second = {name for name, out in zip(more, held_out(more)) if out}
    assert len(first) == 20 and len(first - second) <= 1
    assert held_out(["a"]).tolist() == [True] and held_out(names[::-1]).tolist() == held_out(names).tolist()[::-1]


def test_one_image_cannot_be_divided(tmp_path, config):
    root = own.coco(tmp_path / "own", NAMES, {"train": own.objects(1, 3)})
    with pytest.raises(AnnotationError, match="one image alone cannot be divided"):
        build_datasets(config(root, train__batch_size=1))


@pytest.mark.parametrize(
    ("splits", "train", "val"),
    [
        (["train", "val", "test"], "train", "val"),
        (["test", "train2017", "val2017"], "train2017", "val2017"),
        (["Training", "testing"], "Training", None),
        (["train", "trainval", "val"], "train", "val"),
        (["test", "trainval"], "trainval", None),
        (["train", "valid"], "train", "valid"),
        (["all"], "all", None),
        (["test"], None, None),
        (["a", "b"], None, None),
    ],
)
def test_the_splits_that_are_chosen(splits, train, val):
    assert (usual_split(splits, "train"), usual_split(splits, "val")) == (train, val)


def test_a_split_can_be_named(tmp_path, config):
    root = own.coco(tmp_path / "own", NAMES, {"a": own.objects(3, 3), "b": own.objects(2, 3), "c": own.objects(4, 3)})
    with pytest.raises(ConfigError, match="none of the splits a, b, c .* says that it is for training.*train_split=a"):
        build_datasets(config(root))
    train_set, val_set = build_datasets(config(root, data__train_split="c", data__val_split="b"))
    assert (len(train_set), len(val_set)) == (4, 2)
    train_set, val_set = build_datasets(config(root, data__train_split="c", data__val_split="c"))
    assert len(train_set) == len(val_set) == 4, "as one says"
    with pytest.raises(ConfigError, match="data.val_split: there is no 'd' in COCO layout.*splits a, b, c"):
        build_datasets(config(root, data__train_split="a", data__val_split="d"))
    assert fitting_settings(root)["data.train_split"] == "a"


@pytest.mark.fault("F110")
def test_a_folder_that_is_no_data_set(tmp_path, yolo, config):
    with pytest.raises(DataError, match=r"holds no data set itself, but .*own does; name that folder"):
        open_layout(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no data set in a layout that is known. COCO: .*YOLO: .*Pascal VOC: "):
        build_datasets(config(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="Pascal VOC: "):
        check(tmp_path / "empty")


# ---------------------------------------------------------------- YOLO


@pytest.mark.fault("F111")
def test_labels_without_data_yaml(yolo):
    (yolo / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"labels/.*\.txt.*but no data.yaml.*write .*names: \[first class"):
        find_layout(yolo)
    report = check(yolo)
    assert not report.ok and "no data.yaml" in str(report)


@pytest.mark.fault("F111")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a]", "'train' is missing"),
        ("train: images/train", "'names' is None"),
        ("train: images/train\nnames: []", "'names' is"),
        ("train: images/train\nnc: 3\nnames: [a]", "nc is 3, but there are 1 names"),
        ("train: images/train\nnc: 1\nnames: {4: a}", "nc is 1, but a name is given for class 4"),
        ("train: images/train\nnames: {x: a}", "names has 'x'"),
        ("train: images/train\nnames: [[a]]", "names has '0'"),
        ("train: {a: b}\nnames: [a]", "train must be a folder"),
        ("train: nowhere\nnames: [ant, bee, cat]", "train is 'nowhere', but there is no such folder"),
        ("train: ../../../etc\nnames: [a]", "no such folder or file in"),
        ("train: /etc\nnames: [a]", "no such folder or file in"),
        ("train: [\n", "not valid YAML"),
        ("names: [a]\nnames: [b]\ntrain: images/train", "given twice"),
    ],
)
def test_a_data_yaml_with_a_fault(yolo, text, message):
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(AnnotationError, match=re.escape(message)) as error:
        open_layout(yolo).read("train")
    assert "data.yaml" in str(error.value)


def test_names_are_the_text_that_is_written(yolo):
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {2: no, 0: 007, 9: 1.10, 1: 'a: b'}")
    layout = open_layout(yolo)
    assert layout.names == {0: "007", 1: "a: b", 2: "no", 9: "1.10"}
    table, _ = layout.read("train")
    assert table.category_ids.tolist() == [0, 1, 2, 9] and table.category_names == ["007", "a: b", "no", "1.10"]


@pytest.mark.parametrize("named", ["coco8.yaml", "dataset.yaml"])
def test_a_data_yaml_of_another_name_and_lists_of_images(yolo, named):
    (yolo / "data.yaml").rename(yolo / named)
    lines = [f"./images/train/photo {i}.png" for i in range(4)]
    (yolo / "train.txt").write_text("\n".join(lines))
    text = (yolo / named).read_text().replace("train: images/train", "train: train.txt")
    (yolo / named).write_text(text)
    assert len(open_layout(yolo).read("train")[0]) == 4
    (yolo / "train.txt").write_text("\n".join([*lines, "images/train/gone.png", "../../outside.png"]))
    with pytest.raises(ImageError, match="2 labels are not in .*\n  images/train/gone.png\n  ../../outside.png"):
        open_layout(yolo).read("train")


def test_a_test_split_that_an_export_only_names(yolo):
    shutil.rmtree(yolo / "images" / "test")
    assert open_layout(yolo).splits == ["train", "val"]


ROWS = {
    "pixels": (
        "0 12 20 8 10",
        "pixels where fractions belong: labels/train/photo 0.txt:1: '0 12 20 8 10'",
        "divide by",
    ),
    "unknown class": (
        "3 0.5 0.5 0.1 0.1",
        "a class that data.yaml does not name: labels/train/photo 0.txt:1",
        "name the class",
    ),
    "too few": ("0 0.5 0.5 0.1", "another count of numbers", "'class x y width height'"),
    "a score": ("0 0.5 0.5 0.1 0.1 0.9", "another count of numbers", "'class x y width height'"),
    "NaN": ("0 0.5 nan 0.1 0.1", "text or NaN where a number belongs", "separated by spaces"),
    "text": ("cat 0.5 0.5 0.1 0.1", "text or NaN where a number belongs", "separated by spaces"),
    "half a class": ("0.5 0.5 0.5 0.1 0.1", "a class that data.yaml does not name", "classes count from 0"),
}


@pytest.mark.fault("F114", "F116", "F118")
@pytest.mark.parametrize(("row", "message", "remedy"), ROWS.values(), ids=ROWS)
def test_a_label_that_means_nothing(yolo, config, row, message, remedy):
    label = yolo / "labels" / "train" / "photo 0.txt"
    label.write_text(row + "\n" + label.read_text())
    with pytest.raises(AnnotationError) as error:
        build_datasets(config(yolo))
    assert message in str(error.value) and remedy in str(error.value) and str(yolo / "data.yaml") in str(error.value)
    with pytest.warns(UserWarning, match="dropped: labels/train/photo 0.txt:1"):
        train_set, _ = build_datasets(config(yolo, data__on_bad_annotation="drop"))
    assert len(train_set.annotations.ids) == sum(map(len, SPLITS["train"].values()))


@pytest.mark.fault("F115")
def test_polygons_become_boxes_and_are_counted(yolo, config):
    (yolo / "labels" / "train" / "photo 0.txt").write_text("1 0.25 0.5 0.5 0.1 0.75 0.9\n")
    with pytest.warns(UserWarning, match="polygon, of which the box was taken: labels/train/photo 0.txt:1"):
        train_set, _ = build_datasets(config(yolo))
    assert train_set.annotations.boxes[0].tolist() == pytest.approx([10, 3, 20, 24])


@pytest.mark.fault("F117")
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_label_file_is_an_image_without_objects(yolo, text):
    (yolo / "labels" / "train" / "photo 0.txt").write_text(text)
    table, report = open_layout(yolo).read("train")
    assert len(table) == 6 and 0 not in table.image and not report


@pytest.mark.fault("F113")
def test_images_without_labels(yolo, voc_of_yolo):
    (yolo / "labels" / "train" / "photo 0.txt").unlink()
    table, report = open_layout(yolo).read("train")
    assert len(table) == 6 and "image without a label file, taken to have no objects: images/train/photo 0.png" in str(
        report
    )
    shutil.rmtree(yolo / "labels" / "train")
    with pytest.raises(
        AnnotationError, match="no image of train has a label file; the labels of .* must be .*labels/train"
    ):
        open_layout(yolo).read("train")
    (voc_of_yolo / "Annotations" / "train photo 0.xml").unlink()
    _, report = open_layout(voc_of_yolo).read("train")
    assert "image without an XML file, taken to have no objects: JPEGImages/train photo 0.png" in str(report)


@pytest.fixture
def voc_of_yolo(tmp_path):
    return own.voc(tmp_path / "voc", NAMES, SPLITS)


@pytest.mark.fault("F112")
@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "voc"])
def test_labels_of_missing_images_are_all_listed(layout, tmp_path, config):
    root = own.WRITERS[layout](tmp_path / "own", NAMES, SPLITS)
    for path in root.rglob("*photo 1.png"):
        path.unlink()
    with pytest.raises(ImageError, match=r"the images of 1 labels are not in .*\n  .*photo 1"):
        build_datasets(config(root))
    assert "photo 1" in str(check(root)) and not check(root).ok


def test_unreadable_images_are_all_told(yolo):
    for i in range(2):
        (yolo / "images" / "train" / f"photo {i}.png").write_bytes(b"nothing")
    with pytest.raises(
        ImageError, match=r"2 images cannot be read; mend or remove them:\n.*photo 0.png.*\n.*photo 1.png"
    ):
        open_layout(yolo).read("train")


@pytest.mark.fault("F31")
def test_links_out_of_the_folder(yolo, tmp_path, config):
    own.write_image(tmp_path / "secret.png")
    (yolo / "images" / "train" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(AnnotationError, match="link.png is a link to .*secret.png, outside"):
        build_datasets(config(yolo))


@pytest.mark.fault("F31")
def test_linked_folders(yolo, tmp_path, config):
    (yolo / "images" / "train").rename(tmp_path / "elsewhere")
    (yolo / "images" / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AnnotationError, match="the folder .*images/train is a link to .*elsewhere, outside .*own"):
        build_datasets(config(yolo))
    (yolo / "images" / "train").unlink()
    (yolo / "images" / "train").mkdir()
    (yolo / "images" / "train" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AnnotationError, match="train: .*more is a linked folder, into which nobody looks"):
        build_datasets(config(yolo))


@pytest.mark.parametrize(("points", "row"), [("[12, 2]", "0.1 0.2 " * 12), ("[17, 3]", "0.1 0.2 2 " * 17)])
def test_of_keypoints_the_box_is_taken(yolo, points, row):
    file = yolo / "data.yaml"
    file.write_text(f"{file.read_text()}\nkpt_shape: {points}\n")
    label = yolo / "labels" / "train" / "photo 0.txt"
    label.write_text(f"1 0.5 0.5 0.25 0.5 {row}\n1 0.5 0.5 0.25 0.5\n")
    table, report = open_layout(yolo).read("train")
    assert table.boxes[table.image == 0].tolist() == [[15, 7.5, 10, 15]] * 2 and not report
    label.write_text(f"1 0.5 0.5 0.25 0.5 {row}0.5 0.5\n")
    with pytest.raises(AnnotationError, match="another count of numbers.*kpt_shape in data.yaml"):
        open_layout(yolo).read("train")
    file.write_text(file.read_text().replace(points, "17"))
    with pytest.raises(AnnotationError, match="kpt_shape is '17'; expected two numbers"):
        open_layout(yolo)


# ---------------------------------------------------------------- Pascal VOC


def test_lower_case_annotations_beside_images_and_hidden_files(voc, tmp_path, config):
    (voc / "Annotations").rename(voc / "annotations")
    (voc / "JPEGImages").rename(voc / "images")
    (voc / "annotations" / "._hidden.xml").write_bytes(b"macOS")
    (voc / "images" / "._hidden.png").write_bytes(b"macOS")
    train_set, val_set = build_datasets(config(voc))
    assert (len(train_set), len(val_set)) == (6, 3) and check(voc).ok


def test_a_list_with_whole_paths_is_told(voc):
    (voc / "ImageSets" / "Main" / "train.txt").write_text("/home/me/JPEGImages/1\n")
    with pytest.raises(ImageError, match=r"/home/me/JPEGImages/1 \(/home/me/JPEGImages/1.xml\)"):
        open_layout(voc).read("train")


@pytest.mark.fault("F119")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "not valid XML"),
        ("", "not valid XML"),
        ("<html/>", "holds <html>, not the <annotation>"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>", "declares a document type"),
    ],
)
def test_an_xml_file_that_is_none(voc, text, message):
    (voc / "Annotations" / "train photo 0.xml").write_text(text)
    with pytest.raises(AnnotationError, match=message) as error:
        open_layout(voc).read("train")
    assert "train photo 0.xml" in str(error.value)


@pytest.mark.fault("F118")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>", "<left>", "no box of four numbers: Annotations/train photo 0.xml object 1"),
        ("<name>", "<title>", "no name: Annotations/train photo 0.xml object 1"),
    ],
)
def test_an_object_that_means_nothing(voc, old, new, message):
    path = voc / "Annotations" / "train photo 0.xml"
    path.write_text(path.read_text().replace(old, new).replace(old.replace("<", "</"), new.replace("<", "</")))
    with pytest.raises(AnnotationError, match=re.escape(message)):
        open_layout(voc).read("train")
    _, report = open_layout(voc).read("train", on_bad="drop")
    assert "dropped: Annotations/train photo 0.xml object 1" in str(report)


def test_boxes_that_count_from_0(voc):
    path = voc / "Annotations" / "val photo 0.xml"
    path.write_text(own.xml("val photo 0", NAMES, [(0, (-1, 4, 10, 10))]))  # xmin 0
    table, _ = open_layout(voc).read("val")
    assert table.boxes[0].tolist() == [0, 5, 9, 9]
    assert open_layout(voc).read("train")[0].boxes[0, 0] == SPLITS["train"]["photo 0"][0][1][0] + 1, (
        "in all of the folder"
    )


def test_difficult_objects_are_ignored_as_crowds_are(voc):
    path = voc / "Annotations" / "train photo 0.xml"
    path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<", 1))
    table, report = open_layout(voc).read("train")
    assert table.crowd.tolist().count(True) == 1 and "marked difficult" in str(report)


def test_folders_with_xml_beside_the_images(voc, tmp_path):
    root = tmp_path / "export"
    for split in SPLITS:
        (root / split).mkdir(parents=True)
        for path in [*voc.glob(f"Annotations/{split} *.xml"), *voc.glob(f"JPEGImages/{split} *.png")]:
            path.rename(root / split / path.name)
    layout = open_layout(root)
    assert layout.splits == ["test", "train", "val"] and len(layout.read("train")[0]) == 6
    shutil.move(root / "train", tmp_path / "alone")
    assert (
        open_layout(tmp_path / "alone").splits == ["all"] and len(open_layout(tmp_path / "alone").read("all")[0]) == 6
    )


def test_lists_of_one_class_are_no_splits(voc):
    (voc / "ImageSets" / "Main" / "ant_train.txt").write_text("train photo 0  1\ntrain photo 1 -1\n")
    assert open_layout(voc).splits == ["test", "train", "val"]
    shutil.rmtree(voc / "ImageSets")
    assert open_layout(voc).splits == ["all"] and len(open_layout(voc).read("all")[0]) == 11


# ---------------------------------------------------------------- COCO


def test_other_places_for_images_and_files(tmp_path, config):
    root = own.coco(tmp_path / "own", NAMES, SPLITS)
    (root / "images").mkdir()
    for split in SPLITS:
        (root / split).rename(root / "images" / split)
    assert len(build_datasets(config(root))[0]) == 6
    for split in SPLITS:
        (root / "images" / split).rename(root / split)
        (root / "annotations" / f"instances_{split}.json").rename(root / split / "_annotations.coco.json")
    assert len(build_datasets(config(root))[0]) == 6


def test_splits_with_other_categories_are_refused(tmp_path, config):
    root = own.coco(tmp_path / "own", NAMES, {"train": SPLITS["train"]})
    other = own.coco(tmp_path / "other", ["bee", "ant", "cat"], {"val": SPLITS["val"]})
    (other / "annotations" / "instances_val.json").rename(root / "annotations" / "instances_val.json")
    (other / "val").rename(root / "val")
    with pytest.raises(AnnotationError, match=r"has other categories than .*instances_train.json.*'ant' \(id 1\)"):
        build_datasets(config(root))


def test_some_images_of_a_table(yolo):
    table, _ = open_layout(yolo).read("train")
    wanted = np.arange(6) % 2 == 1
    some = table.of_images(wanted)
    assert some.file_names == table.file_names[1::2] and len(some.ids) == int(wanted[table.image].sum())
    assert [some.place(i) for i in range(len(some.ids))] == [
        table.place(i) for i in range(len(table.ids)) if wanted[table.image[i]]
    ]
    assert {f.name for f in dataclasses.fields(some)} >= {"places"} and some.image.max() == 2
