"""Track regressions of training steps, as test_attention_speed.py does for attention."""

import pytest
import torch

from benchmarks.core.activations import example
from benchmarks.peers.plain_pytorch import PlainModel
from benchmarks.suites.model import shapes

pytest.importorskip("pytest_benchmark", reason='pytest-benchmark is not installed: pip install ".[bench]"')

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("way", ["ours", "plain"])
@pytest.mark.parametrize("arch", ["var", "mvar"])
@pytest.mark.parametrize("shape", shapes(DEVICE, quick=True), ids=lambda shape: shape.name)
def test_training_step(benchmark, shape, arch, way):
    model = shape.build(arch, DEVICE)
    inputs = example(model, shape.batch, DEVICE)
    loss = model.loss if way == "ours" else PlainModel(model, shape.dtype).loss

    def step():
        model.zero_grad()
        with torch.autocast(DEVICE.type, shape.dtype, enabled=shape.dtype != torch.float32):
            value = loss(*inputs)
        value.backward()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark(step)
