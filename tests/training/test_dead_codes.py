"""Codes that nothing draws are moved to residuals of the batch, however it is divided."""

import numpy as np
import torch

from vqvae_cases import task


def test_dead_codes_come_back():
    """Codes that nobody draws are put on residuals of the batch, and codes in use stay where they are."""
    subject = task()
    model = subject.model
    with torch.no_grad():
        model.quantizer.codebook.weight[12:] += 1000
    far = model.quantizer.codebook.weight.detach().clone()
    for step in range(20, 60):
        subject.loss(step)
        subject.after_step(step)
    moved = (model.quantizer.codebook.weight - far).abs().amax(1)
    assert (moved[12:] > 900).all()
    features = model.latents(subject.batch(99))
    drawn = model.quantizer(features)[3].unique()
    assert (drawn >= 12).any(), "a restarted code should be near data"


def test_a_step_in_parts_and_processes_equals_a_whole_step():
    """Codes counted and residuals taken for dead codes, whether a process has the batch, parts of it, or half
    of it beside another process.
    """
    whole, parts, first, second = (task() for _ in range(4))
    for subject, rows in (
        (whole, [None]),
        (parts, [slice(0, 3), slice(3, 8)]),
        (first, [slice(0, 4)]),
        (second, [slice(4, 8)]),
    ):
        with torch.no_grad():
            subject.model.quantizer.codebook.weight[12:] += 1000
        for part in rows:
            subject.loss(20, part)

    def summed(ask):
        return sum(ask(subject) for subject in (first, second))

    counts = whole.dead_codes.draws()
    assert torch.equal(counts, summed(lambda subject: subject.dead_codes.draws()))
    assert counts.sum(1).tolist() == [8, 32, 128]
    places = np.random.default_rng(0).permutation(8 * 21)[:50]
    residuals = whole.dead_codes.residuals_at(places)
    assert torch.allclose(
        residuals, summed(lambda subject: subject.dead_codes.residuals_at(places)), atol=1e-5
    )
    assert residuals.abs().amax(1).min() > 0, "every place is filled by one of them"
    whole.after_step(20)
    parts.after_step(20)
    assert torch.allclose(whole.model.quantizer.code_usage, parts.model.quantizer.code_usage)
    assert torch.allclose(
        whole.model.quantizer.codebook.weight, parts.model.quantizer.codebook.weight, atol=1e-5
    )
    assert (whole.model.quantizer.codebook.weight[12:].abs() < 500).all()
