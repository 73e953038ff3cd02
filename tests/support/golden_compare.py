"""Comparisons with golden figures: errors relative to the largest magnitude, and codes one by one."""


def assert_close_to_largest(actual, expected, tolerance, what):
    """Largest error within `tolerance` of the largest magnitude."""
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    error = (actual - expected).abs().max().item()
    bound = tolerance * expected.abs().max().item()
    assert error <= bound, f"{what}: largest error {error:.3e}, allowed {bound:.3e}"


def assert_indices_equal(actual, expected, what):
    wrong = (actual != expected).nonzero()
    assert len(wrong) == 0, (
        f"{what}: {len(wrong)} of {expected.numel()} codes differ, the first at {wrong[0].tolist()}"
    )
