"""In context: a Transformer reads the support set and predicts, without any step of learning."""
