"""Build the wheel, install it in a clean environment outside the tree, and sample there (`make wheel-test`).

A .pth file lends the clean environment the packages of this one, so that torch is not downloaded again. The
project is not among them: it is installed in this one as a link to the tree.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

from mvar_models.checkpoints.zoo import EMBEDDED, ENTRIES

ROOT = Path(__file__).parent.parent
_SAMPLE = """
import sys, mvar_kernels, mvar_models
from pathlib import Path
assert Path(sys.argv[1]) in Path(mvar_models.__file__).parents, mvar_models.__file__
images = mvar_models.MVARPipeline.from_pretrained("mvar-digits")(["three", 7], seed=0)
images += mvar_models.MVARPipeline.from_pretrained("mvar-emoji")(["noto-flags"], seed=0)
print(mvar_kernels.__version__, [image.size for image in images])
"""


def main() -> None:
    """Raise unless the wheel holds what it should and works by itself."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", str(temporary), str(ROOT)], check=True)
        (wheel,) = temporary.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        weights = [name for name in names if name.endswith(".safetensors")]
        embedded = {
            f"mvar_models/weights/{entry.file}" for entry in ENTRIES.values() if entry.repository == EMBEDDED
        }
        assert {str(Path(name).parent) for name in weights} == embedded, weights
        assert wheel.stat().st_size < 35_000_000, wheel.stat().st_size
        licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
        assert licences == {"LICENSE", "NOTICE"}, licences
        assert wheel.name.startswith("mvar_kernels-"), wheel.name
        assert not any(name.startswith(("tests/", "benchmarks/", "scripts/")) for name in names)
        environment = temporary / "env"
        venv.create(environment, with_pip=True)
        python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        done = subprocess.run(
            [str(python), "-c", _SAMPLE, str(site)], cwd=temporary, check=True, capture_output=True, text=True
        )
        script = python.parent / "mvar"
        subprocess.run(
            [str(script), "sample", "--model", "mvar-digits", "--n", "1", "-o", str(temporary / "out")],
            cwd=temporary,
            check=True,
        )
        assert len(list((temporary / "out").glob("*.png"))) == 11
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {done.stdout.strip()}")


if __name__ == "__main__":
    main()
