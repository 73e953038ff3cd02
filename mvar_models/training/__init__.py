"""Training: pictures to codes, codes to a transformer, all of it resumable. Needs the `train` extra."""
