"""EvalRun: a model measured against baselines and judged by a gate."""
