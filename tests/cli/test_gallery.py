"""`mvar gallery` draws from a name or from the folder of a run."""

from mvar_models import MVARPipeline

from command_cases import mvar


def test_a_run_folder_draws_its_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    MVARPipeline.from_pretrained("mvar-digits").save_pretrained(run / "best")
    (run / "config.yaml").write_text("kind: transformer\n")
    found = []
    for model in ("mvar-digits", run):
        out = tmp_path / str(len(found))
        result = mvar("gallery --labels 3 --n 1 --seed 2 --top-k 9", "--model", model, "-o", out)
        assert result.exit_code == 0, result.output
        assert f"4 sheets, listed in {out / 'index.md'}" in result.output
        found.append([(out / name).read_bytes() for name in ("classes.png", "inpainting.png")])
    assert found[0] == found[1]


def test_what_draws_must_be_named(tmp_path):
    result = mvar("gallery", "-o", tmp_path)
    assert result.exit_code == 2
    assert "--model is missing" in result.output
