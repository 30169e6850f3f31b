"""ModelDeployment: a model served by vLLM once its gate passed."""
