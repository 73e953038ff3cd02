"""Training that can be interrupted: VQVAEs on images, transformers on their codes. Needs the `train` extra.

From Python, as the command line does it::

    from mvar_models.training.runs import start_transformer_run, train_transformer

    run = start_transformer_run(data="photos", out="runs/a", init="var-d16", epochs=80)
    figures = train_transformer(run)

`runs` turns settings into a finished run; `settings` has the settings, `build` the networks, `loop` the
steps. `task` says what another kind of training must provide.
"""
