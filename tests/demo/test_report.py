"""What the report calls reached, and what it does not."""

from mvar_models.demo import report


def test_gates_fail_where_they_should():
    figures = {
        "validation": {"var": {"val_loss": 2.0}, "mvar": {"val_loss": 2.031}},
        "quality": {"var": {"frechet": 30.0}, "mvar": {"frechet": 40.1, "agreement": 0.96}},
    }
    assert list(report.gates(figures).values()) == [False, False, False]
    figures["validation"]["mvar"]["val_loss"] = 2.029
    figures["quality"]["mvar"] = {"frechet": 39.9, "agreement": 0.97}
    assert all(report.gates(figures).values())
