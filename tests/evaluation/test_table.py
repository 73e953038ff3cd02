"""The printed table: names of distances, columns, notes."""

from mvar_models.evaluation import evaluate
from mvar_models.evaluation.table import table

from feature_cases import random_images, toy


def test_only_what_is_known_has_a_column():
    found = evaluate(random_images(30), random_images(30, seed=1), features="pixels")
    head, row, *notes = table([found])
    assert "FD-pixels" in head
    assert "FID" not in head
    assert "IS" not in head.split()
    assert f"{found['fd']:.2f}" in row
    assert "reference: reference, 30 images; distances of neighbours in float64" in notes


def test_every_set_has_a_row():
    found = [evaluate(random_images(30, seed=i), random_images(30), features=toy()) for i in range(2)]
    lines = list(table(found))
    assert lines[1].startswith("drawn")
    assert lines[2].startswith("drawn")
    assert "IS" in lines[0].split()
