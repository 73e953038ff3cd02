"""`python -m mvar_kernels`: the report and its exit code."""

from mvar_kernels import selfcheck
from mvar_kernels.backends import tiled


def test_selfcheck_passes(capsys):
    assert selfcheck.main() == 0
    printed = capsys.readouterr().out
    assert "auto takes" in printed and "triton     not here: CPU tensors need TRITON_INTERPRET=1" in printed


def test_selfcheck_notices_a_wrong_backend(monkeypatch, capsys):
    original = tiled.forward
    monkeypatch.setattr(tiled, "forward", lambda *args: (original(*args)[0] * 1.01, original(*args)[1]))
    assert selfcheck.main() == 1
    assert "WRONG" in capsys.readouterr().out
