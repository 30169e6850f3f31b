"""The serving launcher: verifies a model's files, starts the engine on it, answers probes and drains."""
