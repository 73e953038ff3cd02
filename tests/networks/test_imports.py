"""The networks import without the Hub, the command line, plots, progress bars or YAML."""

import subprocess
import sys

BLOCKED = (
    "huggingface_hub",
    "click",
    "tqdm",
    "yaml",
    "matplotlib",
    "sklearn",
    "datasets",
    "tensorboard",
    "triton",
)
PROGRAM = """
import importlib.abc, sys, types

BLOCKED = set(sys.argv[1].split(","))


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)


sys.meta_path.insert(0, Refuse())
# The package's own __init__ offers pipelines too, so the networks are imported past it.
package = types.ModuleType("mvar_models")
package.__path__ = [sys.argv[2]]
sys.modules["mvar_models"] = package
import mvar_models.networks.mvar, mvar_models.networks.var, mvar_models.networks.vqvae
import mvar_models.sampling.sampler, mvar_models.sampling.samplers

print(sorted(name for name in sys.modules if name.split(".")[0] in BLOCKED))
"""


def test_networks_and_sampling_need_torch_alone():
    import mvar_models

    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(BLOCKED), mvar_models.__path__[0]],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"
