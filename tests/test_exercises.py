"""The exercises of the course: answers are judged rightly, and the notebooks ask what the checkers check."""

import ast
import functools
import inspect
import json
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import mutants

from msdetr.course.exercises import NOTEBOOKS, check, exercise, exercises
from msdetr.course.exercises.coco import judged
from msdetr.course.exercises.exercise import _questions
from msdetr.course.exercises.training import average_precision
from msdetr.errors import InputLookupError

ROOT = Path(__file__).parent.parent
ALL = [one for notebook in NOTEBOOKS for one in exercises(notebook)]
each = pytest.mark.parametrize("one", ALL, ids=[f"{one.number} {one.name}" for one in ALL])
OTHERS = ("another", "third")  # further right answers are called another_NAME, third_NAME


@functools.cache
def solutions(notebook):
    """The functions of a notebook's file of solutions, and its text."""
    [path] = (ROOT / "notebooks" / "solutions").glob(f"{notebook:02d}_*.py")
    return runpy.run_path(str(path)), path.read_text()


def answers(one):
    """The right answers to an exercise by name, the functions beside them, and the text of all."""
    functions, text = solutions(int(one.number.partition(".")[0]))
    names = [name for name in (one.name, *(f"{word}_{one.name}" for word in OTHERS)) if name in functions]
    return names, functions, text


def test_there_are_enough_of_them_and_most_are_about_matching_and_mixed_supervision():
    about = {3, 4, 8, 11}
    numbers = [int(one.number.partition(".")[0]) for one in ALL]
    assert len(ALL) >= 30 and set(numbers) == set(NOTEBOOKS)
    named = ("10.6", "10.7", "10.8", "2.2", "2.3", "7.2", "5.1")
    assert sum(number in about for number in numbers) + len(named) > len(ALL) / 2
    assert [one.number for one in ALL] == [f"{n}.{i}" for n in NOTEBOOKS for i, _ in enumerate(exercises(n), 1)]
    assert len({one.name for one in ALL}) == len(ALL)
    assert f"{len(ALL)} in all" in (ROOT / "README.md").read_text()


@each
def test_two_different_right_answers_are_accepted(one):
    names, functions, _ = answers(one)
    assert len(names) >= 2
    bodies = {functions[name].__code__.co_code for name in names}
    assert len(bodies) == len(names), "the answers are the same"
    for name in names:
        for seed in (0, 1):  # the answers are right, not only on the inputs of the check
            verdict = one.check(functions[name], seed)
            assert verdict.solved and verdict.answered, verdict


# Mutants that are as right as the original: function, part of what was changed, why it makes no difference. Nothing else is
# left out of the count, but mutants that raise an error on every input, which need no checker.
AS_RIGHT = [
    ("one_to_one", "`0` -1", "all rows are equally long"),
    ("third_one_to_one", "`0` -1", "all rows are equally long"),
    ("p_value", "permutations", "every combination is counted equally often"),
    ("another_p_value", "permutations", "every combination is counted equally often"),
    ("p_value", "with Gt", "1e-9 of room for rounding on the other side"),
    ("another_p_value", "with Gt", "1e-9 of room for rounding on the other side"),
    ("p_value", "2e-09", "rounding is smaller than either"),
    ("another_p_value", "2e-09", "rounding is smaller than either"),
]


def survives(one, wrong):
    """Whether a mutant passes the check; None where it raises an error on every input."""
    ran, right = False, True
    for case, expected in _questions(one, 0):
        verdict = one.wrong(wrong, case, expected)
        raised = verdict is not None and f" {one.name} raises " in verdict
        ran, right = ran or not raised, right and verdict is None
        if ran and not right:
            return False
    return True if ran else None


@pytest.mark.slow
@each
def test_wrong_variants_are_rejected(one):
    """At least 95 % of the mutants of the right answers."""
    names, functions, text = answers(one)
    passed, rejected, excused = [], 0, [entry for entry in AS_RIGHT if entry[0] in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            for mutant in mutants(text, name):
                try:
                    wrong = mutant.define(functions)[name]
                except Exception:  # noqa: BLE001, S112 (it raises as it is defined)
                    continue
                if survived := survives(one, wrong):
                    passed.append((name, mutant.about))
                rejected += survived is False
    reasons = [entry for entry in excused if any(entry[0] == name and entry[1] in about for name, about in passed)]
    assert reasons == excused, "a mutant that is said to be right does not pass"
    counted = [(name, about) for name, about in passed if not any(name == n and a in about for n, a, _ in excused)]
    assert rejected >= 5
    assert rejected >= 0.95 * (rejected + len(counted)), counted


# ---------------------------------------------------------------- notebooks

in_each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS)
CHECK = re.compile(r'check\("([\d.]+)", (\w+)\)$')


@functools.cache
def cells(notebook):
    """(kind, source, whether it is of an exercise) of a notebook's cells; code without IPython's magic lines."""
    [path] = (ROOT / "notebooks").glob(f"{notebook:02d}_*.ipynb")
    found = [
        (cell["cell_type"], "".join(cell["source"]), "exercise" in cell["metadata"].get("tags", []))
        for cell in json.loads(path.read_text())["cells"]
    ]
    return [
        (kind, re.sub(r"^%.*$", "", text, flags=re.MULTILINE) if kind == "code" else text, ours)
        for kind, text, ours in found
    ]


def code_of_exercises(notebook):
    return [text for kind, text, ours in cells(notebook) if ours and kind == "code"]


def work_through(notebook, solved):
    """Verdicts of the checks, as the notebook stands or with its functions replaced by right answers. Cells of exercises stand
    on their own; notebook 10 is one exercise from the first cell on."""
    right, _ = solutions(notebook)
    namespace, verdicts = {}, []
    for source in [text for kind, text, ours in cells(notebook) if kind == "code" and (ours or notebook == 10)]:
        exec(source, namespace)  # noqa: S102 (this repository's own notebook)
        if CHECK.search(source):
            verdicts.append(eval(source.splitlines()[-1], namespace))
        for node in ast.parse(source).body:
            if solved and isinstance(node, ast.FunctionDef) and node.name in right:
                namespace[node.name] = right[node.name]
    return verdicts


@in_each_notebook
def test_the_notebook_asks_for_what_is_checked(notebook):
    wanted = exercises(notebook)
    code = code_of_exercises(notebook)
    stubs = [node for text in code for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert [stub.name for stub in stubs] == [one.name for one in wanted]
    for stub, one in zip(stubs, wanted):
        assert ast.get_docstring(stub), f"{one.name} does not say what it is given and gives back"
        if notebook != 10:
            assert [argument.arg for argument in stub.args.args] == list(inspect.signature(one.oracle).parameters)
    assert [found.groups() for text in code if (found := CHECK.search(text))] == [
        (one.number, one.name) for one in wanted
    ]
    titles = "\n".join(text for kind, text, ours in cells(notebook) if ours and kind == "markdown")
    assert re.findall(r"^##+ ([\d.]+) · \S", titles, re.MULTILINE) == [one.number for one in wanted]


@in_each_notebook
def test_the_notebook_says_where_answers_are_and_does_not_give_them(notebook):
    text = "\n".join(text for _, text, _ in cells(notebook))
    [link] = set(re.findall(r"\]\((solutions/\w+\.py)\)", text))
    assert (ROOT / "notebooks" / link).is_file()
    assert "another_" not in text and "<summary>Solution" not in text


@in_each_notebook
def test_no_function_asked_for_is_one_that_the_notebook_has(notebook):
    """So an answer, also a wrong one, changes nothing when the notebook is run again."""
    if notebook != 10:
        others = ast.parse("\n".join(text for kind, text, ours in cells(notebook) if kind == "code" and not ours))
        taken = {node.name for node in ast.walk(others) if isinstance(node, ast.FunctionDef)}
        imports = [node for node in ast.walk(others) if isinstance(node, (ast.Import, ast.ImportFrom))]
        taken |= {alias.asname or alias.name for node in imports for alias in node.names}
        assert not taken & {one.name for one in exercises(notebook)} - {"iou"}  # in 07 that of the package


@in_each_notebook
def test_the_notebook_as_it_stands_and_with_right_answers(notebook, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "notebooks")
    start = work_through(notebook, solved=False)
    assert [verdict.number for verdict in start] == [one.number for one in exercises(notebook)]
    assert not any(verdict.solved for verdict in start)
    assert all(verdict.answered == (notebook == 10) for verdict in start)
    assert all(verdict.solved for verdict in work_through(notebook, solved=True))


def test_solutions_of_notebook_10_stand_on_their_own():
    _, text = solutions(10)
    imported = {name.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"torch", "torchvision"} and "msdetr" not in text


# ---------------------------------------------------------------- verdicts


def test_an_empty_stub_is_not_answered_yet():
    def dots(scores, tau, k):
        """Numbers of the queries."""

    def raises(scores, tau, k):
        raise NotImplementedError

    for stub in (dots, raises):
        verdict = check("3.4", stub)
        assert (verdict.answered, verdict.solved, repr(verdict)) == (False, False, "3.4: not answered yet")


def test_a_constant_answer_is_no_stub():
    def zero(a, b):
        """IoU."""
        return 0

    assert check("3.1", zero).answered


def test_a_wrong_answer_is_told_the_input_what_it_said_and_what_was_expected():
    verdict = check("3.1", lambda a, b: 1.0)
    assert not verdict.solved
    assert verdict.text.splitlines() == [
        "3.1: not yet, with two boxes that overlap in one quarter:",
        "  a = (0, 0, 2, 2)",
        "  b = (1, 1, 3, 3)",
        "  iou returns 1",
        "  expected 0.1429",
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda a, b: print(end=""), "returns nothing (None); is there a `return`"),
        (lambda a, b: a[7], "raises IndexError: tuple index out of range"),
        (lambda a: 0.0, "raises TypeError"),
        (lambda a, b: [1.0], "iou returns [1] (shape [1] instead of [])\n  expected 1"),
        (lambda a, b: "1", "iou returns '1'\n  expected 1"),
        (3.0, "3 is not a function; define `iou`"),
    ],
)
def test_other_mistakes_are_named(answer, said):
    assert said in check("3.1", answer).text


@pytest.mark.parametrize("empty", [[], np.zeros((0, 2)), torch.zeros(0, 2)], ids=["list", "array", "tensor"])
def test_an_empty_answer_is_right_where_nothing_is_expected(empty):
    right = solutions(5)[0]["precision_recall"]
    assert check("5.3", lambda hits, objects: right(hits, objects) or empty).solved
    assert not check("5.3", lambda hits, objects: empty).solved


def test_of_a_long_dictionary_what_differs_is_shown():
    right = exercise("10.1").oracle
    said = check("10.1", lambda ids: right(ids) | ({50: 0} if 50 in ids else {})).text
    assert said.endswith("class_of returns {50: 0}\n  expected {50: 44}")


def test_an_answer_cannot_spoil_the_questions():
    def greedy(scores, tau, k):
        scores.clear()
        return []

    assert "3.4: not yet, with one query" in check("3.4", greedy).text
    assert check("3.4", exercise("3.4").oracle).solved


def test_answers_may_be_tensors_arrays_lists_and_sets_in_any_order():
    oracle = exercise("3.8").oracle
    for shape in (
        list,
        lambda pairs: torch.tensor(sorted(pairs)).reshape(-1, 2),
        lambda pairs: np.array(sorted(pairs)[::-1]),
    ):
        assert check("3.8", lambda *arguments, shape=shape: shape(oracle(*arguments))).solved
    twice = lambda *arguments: list(oracle(*arguments)) * 2
    assert not check("3.8", twice).solved


def test_numbers_are_compared_with_some_tolerance_and_none_is_no_number():
    oracle = exercise("6.2").oracle
    assert check("6.2", lambda *arguments: tuple(x and x * (1 + 1e-7) for x in oracle(*arguments))).solved
    nan = lambda *arguments: tuple(float("nan") if x is None else x for x in oracle(*arguments))
    assert not check("6.2", nan).solved


@pytest.mark.parametrize("number", ["3.99", "13.1", "x", "3"])
def test_an_exercise_that_does_not_exist_is_an_error(number):
    with pytest.raises(InputLookupError, match=f"no exercise {re.escape(number)}"):
        exercise(number)


def test_no_notebook_without_exercises_is_asked_for():
    with pytest.raises(InputLookupError, match="notebook 13 has no exercises"):
        exercises(13)


# ---------------------------------------------------------------- oracles that are not the package's own


def coco_evaluation(overlaps, scores, objects, crowd, threshold):
    """pycocotools' judge on detections of one image and class with these IoUs."""
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval()
    judge.params.imgIds, judge.params.catIds, judge.params.iouThrs = [1], [1], np.array([threshold])
    judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e10]], ["all"], [100]
    judge._paramsEval = judge.params
    truths = [{"id": j + 1, "area": 1, "iscrowd": int(crowd[j]), "ignore": int(crowd[j])} for j in range(objects)]
    judge._gts[1, 1] = truths
    judge._dts[1, 1] = [{"id": i + 1, "score": score, "area": 1} for i, score in enumerate(scores)]
    judge.ious = {(1, 1): np.array(overlaps, dtype=np.float64).reshape(len(scores), objects)}
    judge.evalImgs = [judge.evaluateImg(1, 1, [0, 1e10], 100)]
    return judge


def test_the_judge_of_9_2_is_pycocotools(capsys):
    for case, _ in _questions(exercise("9.2"), 0):
        overlaps, crowd, threshold = case.arguments
        if not crowd:
            continue
        scores = [1 - i / 100 for i in range(len(overlaps))]
        found = coco_evaluation(overlaps, scores, len(crowd), crowd, threshold).evalImgs[0]
        ignored, matched = found["dtIgnore"][0], found["dtMatches"][0] > 0
        words = ["ignored" if i else "hit" if m else "miss" for i, m in zip(ignored, matched)]
        assert judged(overlaps, crowd, threshold) == words


def test_average_precision_of_5_4_is_that_of_pycocotools(capsys):
    for case, _ in _questions(exercise("5.4"), 0):
        scores, hits, objects = case.arguments
        if not scores or not objects:
            continue
        order = np.argsort(-np.array(scores))
        overlaps = np.zeros((len(scores), objects))
        overlaps[[i for i in order if hits[i]], range(sum(hits))] = 0.9
        judge = coco_evaluation(overlaps[order], sorted(scores, reverse=True), objects, [False] * objects, 0.5)
        judge.accumulate()
        assert judge.eval["precision"].mean() == pytest.approx(average_precision(scores, hits, objects))
