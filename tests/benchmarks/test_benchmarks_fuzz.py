"""Some hundred files that mean harm, of every kind: none is a fault. The page counts them."""

import random
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from benchmarks.fuzz import text
from benchmarks.op_coverage import Outcome
from tests.support.fuzz_files import Canary, a_pickle_ran
from tests.support.fuzz_trials import SUBJECTS, TURNS, Trial, outcome

pytestmark = pytest.mark.tvm
FEW = {"onnx": 60, "onnx bytes": 40, "pt2": 6, "artifact": 40, "records": 20, "manifest": 25, "calibration": 25}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_file_makes_a_fault(subject: str) -> None:
    first = TURNS.index(subject)
    found = [outcome(Trial(first + len(TURNS) * turn)) for turn in range(FEW[subject])]
    assert not [one for one in found if one.found == "fault"]
    assert any(one.found == "refused" for one in found)


@pytest.mark.filterwarnings("ignore:not repaired")
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_file_that_is_left_as_it_is_works(subject: str, tmp_path: Path) -> None:
    """Else its mutations would be refused for another reason than theirs."""
    for number in range(3):  # an artifact is an archive or a library
        SUBJECTS[subject].read(random.Random(number), "nothing", tmp_path)


def test_a_pickle_that_runs_is_seen() -> None:
    """Else nothing would be told of those that do not."""
    import pickle

    pickle.loads(pickle.dumps(Canary()))
    assert a_pickle_ran()
    assert not a_pickle_ran()


def test_the_page_counts_by_mutation_and_lists_faults() -> None:
    found = [
        Outcome("onnx, cycle, 1", "refused", "UnsupportedModelError: y comes later", 0.1),
        Outcome("onnx, cycle, 21", "fault", "KeyError: 'y'", 0.1),
        Outcome("records, truncated, 17", "worked", "", 0.1),
    ]
    page = text(found)
    assert "| onnx | cycle | 2 | 0 | 1 | 1 |" in page
    assert "| **all** | | 3 | 1 | 1 | 1 |" in page
    assert "- onnx, cycle, 21: KeyError: 'y'" in page
    assert "- UnsupportedModelError: 1" in page
