"""The digits that the package ships, and what of it works without the packages that only its extras bring."""

from __future__ import annotations

import subprocess
import sys

import pytest

from proof_of_learning import TaskReference, load_task
from proof_of_learning.data.commit import commit
from proof_of_learning.data.digits import digits

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["matplotlib", "sklearn"]))  # importing them fails from here on
import proof_of_learning as pol
from proof_of_learning.report.html import render_html
verdict = pol.verify(sys.argv[1])
page = render_html(verdict)
assert "<svg" not in page and "proof-of-learning[report]" in page, page[:2000]
"""


def test_the_digits_are_all_there() -> None:
    images, labels = digits()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 16)
    assert [int((labels == digit).sum()) for digit in range(10)] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_what_a_task_writes_into_its_digits_reaches_no_other() -> None:
    for array in digits():
        array[:] = 0
    assert all(array.any() for array in digits())


@pytest.mark.parametrize(
    ("example", "root"),
    [("digits", "3dc888131441b4d6ad0d14426299b4179211636a005be0eebe590fe8450bec1a"),
     ("custom_step", "997312c8e35185bd810176d4058a09ce2068275de5848aaed4f3314981f02928")],
)  # fmt: skip
def test_the_examples_keep_the_roots_of_their_data(digits: TaskReference, example: str, root: str) -> None:
    """Proofs that were made when scikit-learn brought the digits hold today."""
    reference = TaskReference(digits.target.replace("digits.py", f"{example}.py"), {})
    assert commit(load_task(reference).data()).root == f"sha256:{root}"


def test_a_report_without_figures_says_what_draws_them(digits_proof: object) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(digits_proof)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
