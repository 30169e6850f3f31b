"""FineTuneJob: a base model and datasets in, digest-pinned artefacts out."""
